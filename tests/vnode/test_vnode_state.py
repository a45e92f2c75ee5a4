"""States: one canonical form, read back to the bit, and everything that is not it refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from vnode_models import classifier, middle, spec
from vnode_training import classifier_stage, train_step

from pnode.errors import BlobCorrupt
from pnode.v1 import spec_pb2
from pnode.vnode import sizes, state
from pnode.vnode.stage import Stage

NAMES = [f"{name}.{kind}" for name in ("embed", "norm", "mix.qkv", "mix.out") for kind in ("weight", "bias")]
NAMES += ["place.weight", "head.weight"]
SGD = {"sgd": {"lr": 0.1, "momentum": 0.9}}
PLAIN_SGD = {"sgd": {"lr": 0.1}}


def trained(steps: int, **changes: Any) -> Stage:
    stage = classifier_stage(**changes)
    for step in range(steps):
        train_step(stage, step)
    return stage


def a_state() -> bytes:
    return trained(1, optimizer=SGD).state()


OPTIMIZERS = [classifier()["optimizer"], SGD, PLAIN_SGD]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_state_goes_round_and_training_goes_on_from_it(optimizer: dict[str, Any], steps: int) -> None:
    stage = trained(steps, optimizer=optimizer)
    record = stage.state()
    other = trained(3, optimizer=optimizer)
    other.restore(record)
    assert (other.version, other.accumulated) == (steps, 0)
    assert other.state() == record
    for step in range(steps, steps + 2):
        assert train_step(stage, step) == train_step(other, step)
    assert stage.state() == other.state()


def test_restore_drops_what_was_under_way() -> None:
    stage = trained(1)
    record = stage.state()
    train_step(stage, 1)
    stage.restore(record)
    assert stage.apply(0, 1).loss is None  # applied before, but by whom is forgotten
    train_step(stage, 1)
    assert stage.state() == trained(2).state()
    stage.restore(None)
    assert stage.state() == trained(0).state()
    for step in range(2):
        train_step(stage, step)
    assert stage.state() == trained(2).state()


def test_a_state_is_safetensors_in_one_canonical_form() -> None:
    stage = trained(2)
    record = stage.state()
    tensors = safetensors.torch.load(record)
    assert set(tensors) == {f"{kind}/{name}" for kind in ("param", "exp_avg", "exp_avg_sq") for name in NAMES}
    size = int.from_bytes(record[:8], "little")
    assert size % 8 == 0
    document = json.loads(record[8 : 8 + size])
    metadata = document.pop("__metadata__")
    assert list(document) == sorted(document)
    assert metadata == {"format": "pnode-state-1", "profile": "samebits-1", "version": "2", "vnode": "only"}
    assert len(record) <= sizes.state_bytes(spec(classifier()))
    assert len(record) >= sizes.state_bytes(spec(classifier())) - 32


def test_a_nan_in_a_weight_is_canonical_in_the_state() -> None:
    stage = trained(0)
    tensors = safetensors.torch.load(stage.state())
    offset = _offset(stage.state(), "param/norm.bias")
    spoiled = bytearray(stage.state())
    spoiled[offset : offset + 4] = (0x7FC00000).to_bytes(4, "little")
    stage.restore(bytes(spoiled))
    assert stage.state() == bytes(spoiled)
    assert len(tensors) == 10


def _offset(record: bytes, name: str) -> int:
    size = int.from_bytes(record[:8], "little")
    return 8 + size + int(json.loads(record[8 : 8 + size])[name]["data_offsets"][0])


def _reheaded(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """The same tensors' bytes under another header."""

    def spoil(record: bytes) -> bytes:
        size = int.from_bytes(record[:8], "little")
        document = json.loads(record[8 : 8 + size])
        text = json.dumps(change(document) or document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + record[8 + size :]

    return spoil


def _with(name: str, **entry: Any) -> Callable[[bytes], bytes]:
    return _reheaded(lambda document: document[name].update(entry))


def _metadata(**entry: Any) -> Callable[[bytes], bytes]:
    return _with("__metadata__", **entry)


def _renamed(document: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("head", "heat"): entry for name, entry in document.items()}


def _nan(record: bytes) -> bytes:
    offset = _offset(record, "param/norm.bias")
    return record[:offset] + (0x7FC00001).to_bytes(4, "little") + record[offset + 4 :]


def _extra(record: bytes) -> bytes:
    size = len(record) - 8 - int.from_bytes(record[:8], "little")
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [size, size + 4]}
    return _reheaded(lambda document: document.update(zzz=entry))(record) + bytes(4)


def _padded(record: bytes) -> bytes:
    size = int.from_bytes(record[:8], "little")
    return (size + 8).to_bytes(8, "little") + record[8 : 8 + size] + b" " * 8 + record[8 + size :]


NAME = "momentum_buffer/embed.bias"
CORRUPT: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("nothing", lambda _: b"", "truncated: 0 bytes"),
    ("seven bytes", lambda record: record[:7], "truncated: 7 bytes"),
    ("header only", lambda record: record[: 8 + int.from_bytes(record[:8], "little")], "truncated in tensor"),
    ("last byte missing", lambda record: record[:-1], "truncated in tensor"),
    ("a byte too many", lambda record: record + b"x", "1 bytes after its last tensor"),
    ("header length of 2**63", lambda record: b"\xff" * 7 + b"\x7f" + record[8:], "claims a header"),
    ("header length 0", lambda record: bytes(8) + record[8:], "not JSON"),
    ("header too short", lambda record: (16).to_bytes(8, "little") + record[8:], "not JSON"),
    ("header of deep lists", lambda _: (100_000).to_bytes(8, "little") + b"[" * 100_000, "not JSON"),
    ("header of latin-1", lambda _: (7).to_bytes(8, "little") + b'{"\xe9":1}', "not JSON"),
    ("header is a list", lambda _: (2).to_bytes(8, "little") + b"[]", "not a JSON object"),
    ("a name twice", lambda _: (24).to_bytes(8, "little") + b'{"a":1,"a":1}           ', "not JSON"),
    ("no metadata", _reheaded(lambda document: document.pop("__metadata__") and None), "not a state of format"),
    ("another format", _metadata(format="pt"), "not a state of format"),
    ("another VNode", _metadata(vnode="other"), "of VNode 'other', expected 'only'"),
    ("another profile", _metadata(profile="torch"), "of profile 'torch'"),
    ("no profile", _metadata(profile=None), "names no VNode or no profile"),
    ("version -1", _metadata(version="-1"), "version is not a number"),
    ("version 2**63", _metadata(version=str(2**63)), "version is not a number"),
    ("version in digits of another script", _metadata(version="١"), "version is not a number"),
    ("version 01", _metadata(version="01"), "canonical form"),
    ("version 0 with momentum", _metadata(version="0"), "a tensor too many: 'momentum_buffer/"),
    ("metadata with more in it", _metadata(generation="4"), "canonical form"),
    ("wrong dtype", _with(NAME, dtype="F64"), "not F32"),
    ("wrong shape of the same size", _with(NAME, shape=[4, 2]), r"has shape \[4, 2\], expected \[8\]"),
    ("wrong shape of another size", _with(NAME, shape=[9]), "does not lie at"),
    ("negative shape", _with(NAME, shape=[-8]), "no size"),
    ("shape of floats", _with(NAME, shape=[8.0]), "no size"),
    ("shape of true", _with(NAME, shape=[True, 8]), "no size"),
    ("shape of 2**62", _with(NAME, shape=[2**62]), "no size"),
    ("overlapping offsets", _with("momentum_buffer/embed.weight", data_offsets=[0, 128]), "does not lie at"),
    ("offsets far out", _with(NAME, data_offsets=[2**60, 2**60 + 32]), "does not lie at"),
    ("no offsets", _with(NAME, data_offsets=None), "does not lie at"),
    ("more in an entry", _with(NAME, note="hi"), "canonical form"),
    ("entry is a number", _reheaded(lambda document: document.update({NAME: 3})), "not F32"),
    ("another name", _reheaded(_renamed), "has no tensor 'momentum_buffer/head.weight'"),
    ("a tensor too many", _extra, "a tensor too many: 'zzz'"),
    ("a NaN of its own", _nan, "'param/norm.bias' holds a NaN"),
    ("spaces in the header", _padded, "canonical form"),
]


@pytest.mark.parametrize(("spoil", "why"), [case[1:] for case in CORRUPT], ids=[case[0] for case in CORRUPT])
def test_a_corrupt_state_is_refused_and_nothing_is_lost(spoil: Callable[[bytes], bytes], why: str) -> None:
    stage = trained(1, optimizer=SGD)
    record = stage.state()
    with pytest.raises(BlobCorrupt, match=why):
        stage.restore(spoil(record))
    assert stage.state() == record
    train_step(stage, 1)


def test_a_missing_tensor_is_named() -> None:
    record = trained(0).state()
    stage = trained(0, optimizer=SGD)
    with pytest.raises(BlobCorrupt, match="has no tensor 'momentum_buffer/"):
        stage.restore(_metadata(version="1")(record))


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255), cut=st.integers(0, 12_000))
def test_damaged_bytes_are_refused_or_are_another_state(position: int, flip: int, cut: int) -> None:
    """Never another exception, and never a state that is not read back as the same bytes."""
    good, record = _untrained()
    record[position % len(record)] ^= flip
    damaged = bytes(record[: cut or None])
    try:
        parsed = state.decode(good, damaged)
    except BlobCorrupt:
        return
    contents = {name: tensor.content for name, tensor in parsed.tensors.items()}
    assert state.encode(good, parsed.version, contents) == damaged


def _untrained() -> tuple[spec_pb2.VNodeSpec, bytearray]:
    """A spec, and a state of zeros that fits it."""
    good = spec(classifier())
    contents = {
        name: memoryview(np.zeros(shape, dtype="<f4").tobytes()) for name, shape in state.layout(good, 0).items()
    }
    return good, bytearray(state.encode(good, 0, contents))


def test_digests_of_runs_need_states_that_belong_together() -> None:
    one, two = trained(0), trained(1)
    assert state.run_digest([one.state()]) != state.run_digest([two.state()])
    with pytest.raises(BlobCorrupt, match="is in two states"):
        state.run_digest([one.state(), one.state()])
    other = Stage(spec(middle())).state()
    assert state.run_digest([one.state(), other]) == state.run_digest([other, one.state()])
    with pytest.raises(BlobCorrupt, match="one version"):
        state.run_digest([two.state(), other])


def test_the_smallest_difference_changes_the_digest() -> None:
    record = trained(0).state()
    offset = _offset(record, "param/norm.bias")
    assert record[offset : offset + 4] == bytes(4)
    negative = record[:offset] + b"\x00\x00\x00\x80" + record[offset + 4 :]
    assert state.run_digest([record]) != state.run_digest([negative])


def test_torch_profile_states_are_no_samebits_states() -> None:
    record = trained(1, profile="torch").state()
    torch.use_deterministic_algorithms(False)
    with pytest.raises(BlobCorrupt, match="profile 'torch'"):
        trained(0).restore(record)
