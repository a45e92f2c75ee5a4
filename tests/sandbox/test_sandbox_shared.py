"""Arenas: sealed for good, copied out once, checked before anything is written."""

from __future__ import annotations

import fcntl
import mmap
import os

import pytest

from pnode.errors import BadRequest, TooLarge
from pnode.sandbox import shared
from pnode.v1.tensor_pb2 import DTYPE_F32, DTYPE_I64, DTYPE_U8
from pnode.vnode.tensors import TensorBytes


def test_tensors_survive_the_way_and_start_on_cache_lines() -> None:
    arena, fd = shared.create("test", 4096, worker_writes=True)
    tensors = [
        TensorBytes("a", DTYPE_U8, (3,), b"abc"),
        TensorBytes("none", DTYPE_F32, (0, 5), b""),
        TensorBytes("scalar", DTYPE_I64, (), memoryview(b"\x01" + b"\0" * 7)),
    ]
    slots = arena.pack(tensors)
    assert [slot.offset % 64 for slot in slots] == [0, 0, 0]
    other = shared.attach(fd, writable=False)
    assert [tensor._replace(payload=bytes(tensor.payload)) for tensor in other.view(slots)] == tensors
    os.close(fd)
    for each in (arena, other):
        each.close()


def test_it_is_given_back_even_while_somebody_looks_at_it() -> None:
    arena, fd = shared.create("test", 4096, worker_writes=True)
    os.close(fd)
    (tensor,) = arena.view(arena.pack([TensorBytes("a", DTYPE_U8, (3,), b"abc")]))
    arena.close()
    assert bytes(tensor.payload) == b"abc"


@pytest.mark.parametrize("worker_writes", [True, False])
def test_nobody_can_resize_it_or_change_its_seals(worker_writes: bool) -> None:
    arena, fd = shared.create("test", 5000, worker_writes=worker_writes)
    assert arena.size == 2 * mmap.PAGESIZE
    for size in (0, 4096, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(fd)
    arena.close()


def test_an_inbox_can_be_written_by_its_maker_alone() -> None:
    arena, fd = shared.create("test", 4096, worker_writes=False)
    reopened = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    for each in (fd, reopened):
        with pytest.raises(PermissionError):
            os.pwrite(each, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(each, 4096)
        os.close(each)
    arena.pack([TensorBytes("a", DTYPE_U8, (3,), b"abc")])
    arena.close()


def test_what_does_not_fit_is_refused_before_anything_is_written() -> None:
    arena, fd = shared.create("test", 4096, worker_writes=True)
    arena.pack([TensorBytes("a", DTYPE_U8, (3,), b"abc")])
    slots = [shared.Slot("a", DTYPE_U8, (3,), 0)]
    with pytest.raises(TooLarge, match="4096"):
        arena.pack([TensorBytes("a", DTYPE_U8, (3,), b"xyz"), TensorBytes("b", DTYPE_U8, (4096,), bytes(4096))])
    with pytest.raises(TooLarge):
        arena.pack([TensorBytes("a", DTYPE_U8, (0,), b"")] * 2000)
    assert bytes(arena.view(slots)[0].payload) == b"abc"
    os.close(fd)
    arena.close()


@pytest.mark.parametrize(
    "tensor",
    [
        TensorBytes("a", DTYPE_F32, (2,), b"1234"),
        TensorBytes("a", DTYPE_F32, (-1,), b""),
        TensorBytes("a", 0, (1,), b"1"),
        TensorBytes("a", DTYPE_U8, (1,) * 17, b"1"),
        TensorBytes("a" * 600, DTYPE_U8, (1,), b"1"),
    ],
)
def test_tensors_that_lie_are_refused(tensor: TensorBytes) -> None:
    arena, fd = shared.create("test", 4096, worker_writes=True)
    with pytest.raises(BadRequest):
        arena.pack([tensor])
    os.close(fd)
    arena.close()
