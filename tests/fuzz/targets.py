"""What reads bytes from outside, each with good bytes to begin with. A target raises where it finds a mistake of ours.

A parser may refuse with its own kind of error, and with no other. What it accepts must mean the same to whoever reads
it again: to our own writer, or to the library whose format it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from safetensors import SafetensorError, deserialize

from pnode.client.cut import Plan, cut
from pnode.client.model import transformer_classifier
from pnode.errors import BadRequest, BlobCorrupt, SpecError
from pnode.sandbox import faults, frames, shared
from pnode.transport import codec, tensors
from pnode.v1 import spec_pb2, tensor_pb2, vnode_pb2
from pnode.vnode import estimate, sizes, spec, state
from pnode.vnode.tensors import num_elements

ARENA_BYTES = 1 << 16


class Target(NamedTuple):
    """`check` takes any bytes; `seeds` are good ones; `words` help a fuzzer to get past comparisons."""

    check: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[str] = ()


def check_frame(raw: bytes) -> None:
    """Control frames between front, zygote and worker, with their tables of tensors and their errors."""
    try:
        frame = frames.decode(raw)
    except frames.FrameError:
        return
    # What is written back is longer where numbers were short, as 1e9: then it may be too large.
    with suppress(frames.FrameError):
        assert _same(frames.decode(frames.encode(frame)), frame), "a frame changes on its way"
    with suppress(frames.FrameError):
        for slot in shared.from_wire(frame.get("tensors"), ARENA_BYTES):
            assert 0 <= slot.offset <= ARENA_BYTES, "a tensor lies outside its arena"
    with suppress(frames.FrameError):
        faults.from_wire(frame)


def _same(one: Any, other: Any) -> bool:
    """Equal, with NaN equal to itself."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def check_spec(raw: bytes) -> None:
    """VNode specs as protobuf."""
    with suppress(SpecError):
        _judge(spec.from_bytes(raw))


def check_spec_json(raw: bytes) -> None:
    """VNode specs as JSON."""
    with suppress(SpecError):
        _judge(spec.parse_json(raw))


def _judge(found: spec_pb2.VNodeSpec) -> None:
    """A valid spec is written and read back to itself, and can be judged by every part of admission."""
    assert spec.from_bytes(found.SerializeToString()) == found, "a spec changes as protobuf"
    assert spec.parse_json(spec.to_json(found)) == found, "a spec changes as JSON"
    assert sizes.least_memory_bytes(found) <= found.limits.memory_bytes, "a spec has less memory than it needs"
    assert estimate.peak_bytes(found) >= sizes.least_memory_bytes(found), "an estimate is below the least"


def check_state(raw: bytes) -> None:
    """States: safetensors in our canonical form. Whatever we accept, the library reads to the same tensors."""
    try:
        parsed = state.parse(raw)
    except BlobCorrupt:
        return
    try:
        theirs = dict(deserialize(raw))
    except SafetensorError as error:
        raise AssertionError(f"we accept what safetensors refuses: {error}") from None
    assert theirs.keys() == parsed.tensors.keys(), "other tensors than safetensors finds"
    for name, tensor in parsed.tensors.items():
        assert (tuple(theirs[name]["shape"]), theirs[name]["dtype"]) == (tensor.shape, "F32")
        assert bytes(theirs[name]["data"]) == bytes(tensor.content)


def check_call(raw: bytes) -> None:
    """Requests with tensors, read as a server reads them. Protobuf itself must find the same in them."""
    for kind in (vnode_pb2.ForwardRequest, vnode_pb2.TrainRequest):
        _check_call(kind, raw)


def _check_call(kind: Any, raw: bytes) -> None:
    try:
        plain = kind.FromString(raw)
    except DecodeError:
        plain = None
    try:
        parcel = codec.decode(kind, raw)
    except BadRequest:
        assert plain is None, f"we refuse a {kind.DESCRIPTOR.name} that protobuf reads"
        return
    assert plain is not None, f"we read a {kind.DESCRIPTOR.name} that protobuf refuses"
    assert [bytes(each) for each in parcel.payloads] == list(plain.payloads), "other payloads than protobuf finds"
    plain.ClearField(codec.FIELD)
    assert parcel.head.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
    described = [*parcel.head.inputs, *getattr(parcel.head, "targets", ())]
    with suppress(BadRequest):
        for tensor in tensors.unpack(described, parcel.payloads, max_bytes=ARENA_BYTES):
            assert num_elements(tensor.shape) <= ARENA_BYTES, "a tensor is larger than it may be"


def _specs() -> list[spec_pb2.VNodeSpec]:
    """A small transformer, cut."""
    model = transformer_classifier(tokens=3, in_features=4, features=4, num_blocks=1, num_heads=2, mlp=2, classes=3)
    plan = Plan(
        run="run",
        seed=1,
        optimizer=spec_pb2.Optimizer(adamw=spec_pb2.AdamW(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8)),
        limits=spec_pb2.Limits(memory_bytes=1 << 28, cpu_s=1, wall_s=1, max_rows=4),
    )
    return cut(model, plan, stages=2)


def _states() -> Iterator[bytes]:
    for each, version in ((_specs()[1], 0), (_specs()[1], 3)):
        shapes = state.layout(each, version)
        contents = {name: memoryview(bytes(4 * num_elements(shape))) for name, shape in shapes.items()}
        yield state.encode(each, version, contents)


def _calls() -> Iterator[bytes]:
    meta = tensor_pb2.TensorMeta(name="x", dtype=tensor_pb2.DTYPE_F32, shape=[2, 3])
    label = tensor_pb2.TensorMeta(name="label", dtype=tensor_pb2.DTYPE_I64, shape=[2])
    fence = vnode_pb2.Fence(run="run", vnode="stage1", generation=1, epoch=2)
    forward = codec.Parcel(vnode_pb2.ForwardRequest(fence=fence, inputs=[meta]), [bytes(24)])
    train = vnode_pb2.TrainRequest(fence=fence, step=3, microbatch=1, num_microbatches=2, batch_rows=4, inputs=[meta])
    train.targets.append(label)
    yield codec.encode(forward, 1 << 20)
    yield codec.encode(codec.Parcel(train, [bytes(24), bytes(16)]), 1 << 20)


_FRAMES: tuple[dict[str, Any], ...] = (
    {"command": "forward", "fields": {"a": 1}, "tensors": [["x", 1, [2, 3], 64], ["y", 3, [], 128]]},
    {"error": {"reason": "BAD_SPEC", "message": "x", "path": "a", "why": "b"}, "loss": math.nan},
)
_HEADER_WORDS = ("__metadata__", "data_offsets", "dtype", "shape", "F32", "format", "version", state.FORMAT)
_FIELD_WORDS = tuple(sorted(field.name for field in spec_pb2.VNodeSpec.DESCRIPTOR.fields))

TARGETS = {
    "frames": Target(check_frame, [frames.encode(frame) for frame in _FRAMES], ("tensors", "error")),
    "specs": Target(check_spec, [each.SerializeToString() for each in _specs()]),
    "specs-json": Target(check_spec_json, [spec.to_json(each).encode() for each in _specs()], _FIELD_WORDS),
    "states": Target(check_state, list(_states()), _HEADER_WORDS),
    "calls": Target(check_call, list(_calls())),
}
