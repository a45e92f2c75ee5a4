"""Control frames: what we write is read back, and nothing else is believed."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnode.errors import PNodeError
from pnode.sandbox import faults, frames, shared
from pnode.sandbox.frames import MAX_FRAME_BYTES, FrameError
from pnode.sandbox.process import _judge
from pnode.sandbox.verdict import Doom
from pnode.vnode.tensors import ITEM_BYTES, num_bytes

_scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False), st.text())
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8
)


@given(st.dictionaries(st.text(), _values, max_size=8))
def test_a_frame_survives_the_way(frame: dict[str, object]) -> None:
    try:
        raw = frames.encode(frame)
    except UnicodeEncodeError:
        return  # a lone surrogate cannot be sent
    assert frames.decode(raw) == frame


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    with suppress(FrameError):
        assert isinstance(frames.decode(raw), dict)


@given(_values)
def test_any_json_is_parsed_or_refused(value: object) -> None:
    raw = json.dumps(value).encode()
    with suppress(FrameError):
        assert isinstance(frames.decode(raw), dict)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"a":1}x',
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":' + b"[" * 30_000,
        b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a":' + b"9" * 60_000 + b"}",
        b'{"a":"' + b"x" * MAX_FRAME_BYTES + b'"}',
    ],
)
def test_hostile_frames_are_refused(raw: bytes) -> None:
    with pytest.raises(FrameError):
        frames.decode(raw)


def test_what_is_too_large_is_not_sent() -> None:
    ours, theirs = frames.pair()
    with ours, theirs, pytest.raises(FrameError):
        frames.send(ours, {"a": "x" * MAX_FRAME_BYTES})


def test_the_largest_frame_passes_the_socket() -> None:
    ours, theirs = frames.pair()
    frame = {"a": "x" * (MAX_FRAME_BYTES - len(frames.encode({"a": ""})))}
    with ours, theirs:
        frames.send(ours, frame)
        received = frames.receive(theirs)
        assert received is not None
        assert received.frame == frame


def test_a_datagram_over_the_bound_is_refused_and_not_cut() -> None:
    ours, theirs = frames.pair()
    with ours, theirs:
        ours.send(b'{"a":1}' + b" " * MAX_FRAME_BYTES)
        with pytest.raises(FrameError):
            frames.receive(theirs)


@pytest.mark.parametrize("room", [0, 1])
def test_descriptors_that_nobody_expects_are_closed(room: int) -> None:
    ours, theirs = frames.pair()
    with ours, theirs:
        before = set(os.listdir("/proc/self/fd"))
        socket.send_fds(ours, [b"{}"], [0, 0, 0])
        with pytest.raises(FrameError):
            frames.receive(theirs, max_fds=room)
        assert set(os.listdir("/proc/self/fd")) == before


def test_expected_descriptors_arrive_and_do_not_pass_exec() -> None:
    ours, theirs = frames.pair()
    with ours, theirs:
        frames.send(ours, {"a": 1}, (0,))
        received = frames.receive(theirs, max_fds=1)
        assert received is not None
        (fd,) = received.fds
        assert not os.get_inheritable(fd)
        frames.close_all(received.fds)


def test_a_closed_other_end_is_none() -> None:
    ours, theirs = frames.pair()
    with ours:
        theirs.close()
        assert frames.receive(ours) is None


@pytest.mark.parametrize("value", [None, "1", 1.5, True, [], {}])
def test_an_integer_is_no_other_type(value: object) -> None:
    with pytest.raises(FrameError):
        frames.integer({"a": value}, "a")


# Replies

_reply_keys = st.sampled_from(["sequence", "fields", "tensors", "error", "reason", "message", "path", "why"])
_reply_values = st.recursive(
    _scalars | st.sampled_from(["BAD_SPEC", "BAD_REQUEST", "CONFIG", "STEP_MISMATCH"]) | st.just(0),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_reply_keys, inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(_reply_keys, _reply_values, max_size=5))
def test_any_reply_is_an_answer_an_error_of_a_request_or_refused(reply: dict[str, object]) -> None:
    try:
        judged = _judge(4096, frames.encode(reply))
        if judged.error is not None:
            assert isinstance(faults.from_wire(judged.error), PNodeError | Doom)
    except (FrameError, PNodeError):
        return
    assert sum(num_bytes(slot.dtype, slot.shape) for slot in judged.slots) <= 4096
    assert all(type(value) in (str, int, float, bool, type(None)) for value in judged.fields.values())


# The table of tensors

_rows = st.lists(
    st.tuples(st.text(max_size=8), st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 9), max_size=3)),
    max_size=6,
)


@given(_rows, st.integers(0, 3))
def test_a_table_survives_the_way(rows: list[tuple[str, int, list[int]]], gap: int) -> None:
    slots: list[shared.Slot] = []
    end = 0
    for name, dtype, shape in rows:
        slots.append(shared.Slot(name, dtype, tuple(shape), end + gap))
        end += gap + num_bytes(dtype, shape)
    assert shared.from_wire(json.loads(json.dumps(shared.to_wire(slots))), end) == tuple(slots)


_junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)


@given(st.lists(st.lists(_junk, min_size=4, max_size=4) | _junk, max_size=4) | _junk)
def test_an_accepted_table_lies_inside_its_arena(table: object) -> None:
    try:
        slots = shared.from_wire(table, 4096)
    except FrameError:
        return
    ends = [0]
    for slot in slots:
        assert slot.offset >= ends[-1]
        ends.append(slot.offset + num_bytes(slot.dtype, slot.shape))
    assert ends[-1] <= 4096


@pytest.mark.parametrize(
    "row",
    [
        ["x", 1, [4], -4],
        ["x", 1, [4], 4093],
        ["x", 1, [-1], 0],
        ["x", 1, [2**62, 2**62], 0],
        ["x", 1, [2**64], 0],
        ["x", 1, [0, 2**64], 0],
        ["x", 99, [1], 0],
        ["x", True, [1], 0],
        ["x", 1, [True], 0],
        ["x", 1, [1.0], 0],
        ["x", 1, [1] * 17, 0],
        ["x", 1, [1], 0, 0],
        ["x" * 600, 1, [1], 0],
        [1, 1, [1], 0],
        "x",
    ],
)
def test_a_row_that_lies_is_refused(row: object) -> None:
    with pytest.raises(FrameError):
        shared.from_wire([row], 4096)


def test_tensors_may_not_overlap_nor_be_too_many() -> None:
    with pytest.raises(FrameError):
        shared.from_wire([["a", 5, [10], 0], ["b", 5, [10], 9]], 4096)
    with pytest.raises(FrameError):
        shared.from_wire([["a", 5, [0], 0]] * 2000, 4096)
