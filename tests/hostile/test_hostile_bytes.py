"""Whatever bytes come as a frame, a spec or a state: one kind of refusal each, at once, and nothing else."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_specs import linear_spec

from pnode.errors import BlobCorrupt, SpecError
from pnode.sandbox import faults, frames, shared
from pnode.v1 import spec_pb2
from pnode.vnode import sizes, spec, state

SPEC = linear_spec().SerializeToString(deterministic=True)
TEXT = spec.to_json(linear_spec()).encode()
CONTENTS = {
    name: memoryview(bytes(4 * shape[0] * (shape[1] if len(shape) > 1 else 1)))
    for name, shape in state.layout(linear_spec(), 0).items()
}
STATE = state.encode(linear_spec(), 0, CONTENTS)
FRAME = frames.encode({"fields": {"a": 1}, "tensors": [["x", 1, [2, 3], 64]]})

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=6), inner, max_size=6),
    max_leaves=20,
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Good bytes with some of them changed, cut out, repeated or put in."""
    raw = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        end = min(len(raw), at + draw(st.integers(0, 16)))
        raw[at:end] = draw(st.sampled_from([b"", bytes(raw[at:end]) * 2, draw(st.binary(max_size=16))]))
    return bytes(raw)


@given(st.binary(max_size=300) | damaged(FRAME) | JSON.map(lambda value: json.dumps(value).encode()))
def test_frames(raw: bytes) -> None:
    try:
        frame = frames.decode(raw)
        shared.from_wire(frame.get("tensors"), 4096)
        faults.from_wire(frame)
    except frames.FrameError:
        return


@given(JSON)
def test_tables_of_tensors(table: object) -> None:
    try:
        slots = shared.from_wire(table, 4096)
    except frames.FrameError:
        return
    assert all(0 <= slot.offset <= 4096 for slot in slots)


@given(st.binary(max_size=300) | damaged(SPEC))
def test_specs(raw: bytes) -> None:
    try:
        found = spec.from_bytes(raw)
    except SpecError:
        return
    assert sizes.least_memory_bytes(found) <= found.limits.memory_bytes


@given(st.binary(max_size=300) | damaged(TEXT) | JSON.map(lambda value: json.dumps(value).encode()))
def test_specs_as_text(raw: bytes) -> None:
    with suppress(SpecError):
        spec.parse_json(raw)


@given(st.binary(max_size=300) | damaged(STATE))
def test_states(raw: bytes) -> None:
    try:
        parsed = state.decode(linear_spec(), raw)
    except BlobCorrupt:
        return
    assert len(raw) == len(STATE)
    assert parsed.tensors.keys() == CONTENTS.keys()


def with_header(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(begin: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


ABOUT = {"format": state.FORMAT, "profile": "samebits-1", "version": "0", "vnode": "v0"}


@pytest.mark.parametrize(
    "raw",
    [
        with_header({"__metadata__": ABOUT, "a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
        with_header({"__metadata__": ABOUT, "a": entry(0, 2**64, [2**62])}, bytes(8)),
        with_header({"__metadata__": ABOUT, "a": entry(0, 0, [2**40, 2**40])}, b""),
        with_header({"__metadata__": ABOUT, "a": entry(-8, 0, [2])}, bytes(8)),
        with_header({"__metadata__": ABOUT, "a": entry(0, 8, [-2])}, bytes(8)),
        struct.pack("<Q", 10 << 30) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        with_header(b'{"__metadata__":{"format":"\xff\xfe"}}'),
        with_header(b"[" * 100_000),
        with_header(b'{"a":' * 100_000),
        with_header({"__metadata__": ABOUT, "a": entry(0, 4, [1])}, struct.pack("<I", 0x7FC00001)),
    ],
    ids=["overlap", "overflow", "overflow of the shape", "negative offset", "negative dim", "10 GiB of header",
         "2^64 of header", "bad UTF-8", "nested lists", "nested objects", "NaN with a payload"],
)  # fmt: skip
def test_states_that_lie(raw: bytes) -> None:
    with pytest.raises(BlobCorrupt):
        state.decode(linear_spec(), raw)


def _mutated(change: str, value: float) -> spec_pb2.VNodeSpec:
    found = linear_spec()
    owner = found
    *path, last = change.split(".")
    for name in path:
        owner = getattr(owner, name)
    setattr(owner, last, value)
    return found


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("optimizer.sgd.lr", float("nan")),
        ("optimizer.sgd.lr", float("inf")),
        ("optimizer.sgd.momentum", float("nan")),
        ("optimizer.sgd.weight_decay", -1.0),
        ("limits.memory_bytes", 2**64 - 1),
        ("limits.max_rows", 2**63),
        ("limits.microbatch_rows", 2**63),
        ("limits.wall_s", float("nan")),
        ("limits.cpu_s", float("inf")),
        ("window", 2**32 - 1),
    ],
)
def test_figures_that_are_none(change: str, value: float) -> None:
    with pytest.raises(SpecError) as refusal:
        spec.from_bytes(_mutated(change, value).SerializeToString())
    assert refusal.value.path.endswith(change.rsplit(".", maxsplit=1)[-1])


def _of_size(dim: int) -> spec_pb2.VNodeSpec:
    found = linear_spec()
    found.inputs[0].shape[0] = dim
    found.operators[0].linear.in_features = dim
    return found


@pytest.mark.parametrize("dim", [0, -1, 2**63 - 1, -(2**63), 2**24 + 1])
def test_dimensions_that_no_machine_has(dim: int) -> None:
    with pytest.raises(SpecError):
        spec.from_bytes(_of_size(dim).SerializeToString())


def test_a_billion_operators_cost_nothing() -> None:
    """As many as a message can hold: refused for its size before it is parsed, or for their number after."""
    operators = spec_pb2.VNodeSpec(operators=[spec_pb2.Operator()] * 1_000_000).SerializeToString()
    tracemalloc.start()
    started = time.monotonic()
    for raw in (operators * 50, operators):
        with pytest.raises(SpecError):
            spec.from_bytes(raw)
    assert time.monotonic() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 512 << 20
    tracemalloc.stop()


def test_text_nested_without_end() -> None:
    for raw in (b"[" * 500_000, b'{"operators":' * 100_000, b'{"loss":{"cross_entropy":' * 50_000):
        with pytest.raises(SpecError):
            spec.parse_json(raw)
