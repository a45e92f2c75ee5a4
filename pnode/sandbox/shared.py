"""Shared memory between the front and one worker: two sealed memfds, and the table of what lies where in them."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeVar

from pnode.errors import BadRequest, TooLarge
from pnode.sandbox.frames import FrameError
from pnode.vnode.tensors import ITEM_BYTES, TensorBytes, num_bytes

# Tensors start on cache lines.
_ALIGNMENT = 64
_MAX_TENSORS = 1_024
_MAX_AXES = 16
_MAX_DIM = 2**62
_MAX_NAME_BYTES = 512
_ROW = [str, int, list, int]

# Not in Python's fcntl: no write and no new writable mapping, by anyone; the mapping that exists goes on (Linux 5.1).
_F_SEAL_FUTURE_WRITE = 0x10
# Truncating a mapped memfd kills its reader with SIGBUS.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Content(Protocol):
    """A tensor that can be copied to where it is read, as TensorBytes can."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def copy_to(self, place: memoryview, /) -> None:
        """Write all of it there; there is room for just as many bytes as dtype and shape say."""


C = TypeVar("C", bound=Content)


class Slot(NamedTuple):
    """One tensor in an arena: `offset` in bytes."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    offset: int


class Arena:
    """A memfd, mapped. Made by the front for one worker and never used for another."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self._whole = memoryview(mapping)
        self.size = len(mapping)

    def pack(self, tensors: Sequence[TensorBytes]) -> tuple[Slot, ...]:
        """Copy the tensors in, one after the other. Raises BadRequest or TooLarge before anything is written."""
        return self._take(tensors, _check_payload)

    def take(self, tensors: Sequence[Content]) -> tuple[Slot, ...]:
        """Let the tensors copy themselves in, one after the other. Raises as `pack`."""
        return self._take(tensors, _check_described)

    def _take(self, tensors: Sequence[C], check: Callable[[C], None]) -> tuple[Slot, ...]:
        slots: list[Slot] = []
        end = 0
        if len(tensors) > _MAX_TENSORS:
            raise TooLarge(f"{len(tensors)} tensors in one command, {_MAX_TENSORS} at most")
        for tensor in tensors:
            check(tensor)
            slot = Slot(tensor.name, tensor.dtype, tuple(tensor.shape), -(-end // _ALIGNMENT) * _ALIGNMENT)
            end = slot.offset + _extent(slot)
            slots.append(slot)
        if end > self.size:
            raise TooLarge(f"tensors of {end} bytes in one command, this VNode's spec allows {self.size}")
        for slot, tensor in zip(slots, tensors, strict=True):
            tensor.copy_to(self._whole[slot.offset : slot.offset + _extent(slot)])
        return tuple(slots)

    def view(self, slots: Iterable[Slot]) -> list[TensorBytes]:
        """The tensors in place, valid until the next command."""
        return [
            TensorBytes(slot.name, slot.dtype, slot.shape, self._whole[slot.offset : slot.offset + _extent(slot)])
            for slot in slots
        ]

    def close(self) -> None:
        """Give the memory back; where somebody still looks at it, an exception's frames for one, once nobody does."""
        self._whole.release()
        with suppress(BufferError):
            self._mapping.close()
        del self._mapping


def create(name: str, num: int, *, worker_writes: bool) -> tuple[Arena, int]:
    """A new arena of at least `num` bytes, and the descriptor to hand to the worker, which the caller closes.

    Sealed against shrinking, growing and further seals; where the worker only reads, against its writing as well.
    """
    size = max(1, -(-num // mmap.PAGESIZE)) * mmap.PAGESIZE
    fd = os.memfd_create(f"pnode-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        mapping = mmap.mmap(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS if worker_writes else _SEALS | _F_SEAL_FUTURE_WRITE)
    except BaseException:
        os.close(fd)
        raise
    return Arena(mapping), fd


def attach(fd: int, *, writable: bool) -> Arena:
    """Map an arena in the worker, whole."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return Arena(mmap.mmap(fd, os.fstat(fd).st_size, prot=protection))


def copied(tensor: Content) -> TensorBytes:
    """The tensor as whoever reads the arena finds it, in memory of its own."""
    place = bytearray(num_bytes(tensor.dtype, tensor.shape))
    tensor.copy_to(memoryview(place))
    return TensorBytes(tensor.name, tensor.dtype, tensor.shape, bytes(place))


def to_wire(slots: Iterable[Slot]) -> list[object]:
    """The table as it stands in a control frame."""
    return [[slot.name, slot.dtype, list(slot.shape), slot.offset] for slot in slots]


def from_wire(table: object, capacity: int) -> tuple[Slot, ...]:
    """The table of a control frame, checked against an arena of `capacity` bytes. Raises FrameError.

    Tensors come in ascending order and may not overlap, so together they are no larger than the arena.
    """
    if not isinstance(table, list) or len(table) > _MAX_TENSORS:
        raise FrameError("a table of tensors is no list or too long")
    slots: list[Slot] = []
    end = 0
    for row in table:
        slot = _slot(row)
        if slot.offset < end or slot.offset + _extent(slot) > capacity:
            raise FrameError("a tensor lies outside its arena or over another")
        end = slot.offset + _extent(slot)
        slots.append(slot)
    return tuple(slots)


def _slot(row: object) -> Slot:
    # JSON gives plain types, and a bool is no int here: it would pass for one.
    if type(row) is list and [type(part) for part in row] == _ROW:
        name, dtype, shape, offset = row
        if _is_name(name) and dtype in ITEM_BYTES and _is_shape(shape):
            return Slot(name, dtype, tuple(shape), offset)
    raise FrameError("a row in a table of tensors is malformed")


def _is_name(name: str) -> bool:
    return len(name) <= _MAX_NAME_BYTES and len(name.encode("utf-8")) <= _MAX_NAME_BYTES


def _is_shape(shape: Sequence[object]) -> bool:
    return len(shape) <= _MAX_AXES and all(type(dim) is int and 0 <= dim <= _MAX_DIM for dim in shape)


def _extent(slot: Slot) -> int:
    return num_bytes(slot.dtype, slot.shape)


def _check_described(tensor: Content) -> None:
    """Raises BadRequest where the other side would refuse it."""
    if tensor.dtype not in ITEM_BYTES or not _is_shape(tensor.shape) or not _is_name(tensor.name):
        raise BadRequest(f"tensor {tensor.name[:100]!r} has an unknown dtype, a bad shape or too long a name")


def _check_payload(tensor: TensorBytes) -> None:
    """Raises BadRequest where it is not as its description says."""
    _check_described(tensor)
    found = memoryview(tensor.payload).nbytes
    if found != num_bytes(tensor.dtype, tensor.shape):
        what = f"tensor {tensor.name!r} of shape {list(tensor.shape)}"
        raise BadRequest(f"{what} has {found} bytes, not as many as its shape says")
