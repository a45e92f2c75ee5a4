"""Specs: read, written, and refused with the path of the offending field."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from vnode_models import DELETE, classifier, middle, spec, spoil

from pnode.errors import SpecError
from pnode.v1 import spec_pb2
from pnode.vnode import bounds
from pnode.vnode.spec import from_bytes, parse_json, to_json, validate

ONE = classifier()
MID = middle()
SERIALISED = {document["id"]: spec(document).SerializeToString() for document in (ONE, MID)}
LINEAR = "operators[0].linear"
ATTENTION = "operators[3].multihead_attention"

# document, what is spoiled, with what, path of the refusal, a word of the reason
RMS: dict[str, Any] = {"name": "p", "inputs": ["c"], "output": "d"}
BAD: list[tuple[dict[str, Any], str, Any, str, str]] = [
    # fields and types of JSON
    (ONE, "colour", "red", "colour", "unknown field"),
    (ONE, "operators[2].dropout", {"p": 0.5}, "operators[2].dropout", "unknown field"),
    (ONE, f"{LINEAR}.in_feature", 4, f"{LINEAR}.in_feature", "unknown field"),
    (ONE, f"{LINEAR}.in_features", "four", f"{LINEAR}.in_features", "whole number"),
    (ONE, f"{LINEAR}.in_features", 4.5, f"{LINEAR}.in_features", "whole number"),
    (ONE, f"{LINEAR}.in_features", None, f"{LINEAR}.in_features", "null"),
    (ONE, f"{LINEAR}.in_features", 2**63, f"{LINEAR}.in_features", "expected"),
    (ONE, f"{LINEAR}.in_features", True, f"{LINEAR}.in_features", "number"),
    (ONE, f"{LINEAR}.bias", 1, f"{LINEAR}.bias", "true or false"),
    (ONE, "operators", {}, "operators", "a list"),
    (ONE, "operators[1]", [], "operators[1]", "an object"),
    (ONE, "id", 5, "id", "string"),
    (ONE, "seed", -1, "seed", "expected 0"),
    (ONE, "seed", 2**64, "seed", "expected 0"),
    (ONE, "window", 2**32, "window", "expected 0"),
    (ONE, "inputs[0].dtype", "DTYPE_F64", "inputs[0].dtype", "expected one of"),
    (ONE, "inputs[0].dtype", 77, "inputs[0].dtype", "expected one of"),
    (ONE, "operators[1].relu", {}, "operators[1].relu", "only one kind"),
    (ONE, "optimizer.sgd", {"lr": 1}, "optimizer.sgd", "only one kind"),
    (ONE, "optimizer.adamw.lr", "fast", "optimizer.adamw.lr", "finite"),
    # names
    (ONE, "id", "", "id", "1 to 128"),
    (ONE, "id", "a/b", "id", "1 to 128"),
    (ONE, "run", "../etc", "run", "1 to 128"),
    (ONE, "run", "é", "run", "1 to 128"),
    (ONE, "run", "x" * 129, "run", "1 to 128"),
    (ONE, "profile", "torchish", "profile", "expected one of"),
    (ONE, "profile", DELETE, "profile", "expected one of"),
    (ONE, "inputs[0].name", "x\n", "inputs[0].name", "1 to 128"),
    (ONE, "operators[4].name", "embed", "operators[4].name", "already"),
    (ONE, "operators[4].name", "x" * 100_000, "operators[4].name", "characters more"),
    (ONE, "operators[4].output", "x1", "operators[4].output", "already"),
    (ONE, "operators[4].output", "label", "operators[4].output", "target"),
    (ONE, "targets[0].name", "x0", "targets[0].name", "already"),
    # shapes
    (ONE, "inputs", [], "inputs", "at least one"),
    (ONE, "inputs[0].dtype", "DTYPE_I64", "operators[0].inputs[0]", "DTYPE_F32"),
    (MID, "inputs[1].dtype", "DTYPE_BF16", "operators[2].inputs[1]", "expected DTYPE_F32 as of 'd', got DTYPE_BF16 of"),
    (MID, "inputs[1].dtype", "DTYPE_BOOL", "operators[2].inputs[1]", "operators take DTYPE_F32 or DTYPE_BF16; 'b' is"),
    (ONE, "inputs[0].dtype", DELETE, "inputs[0].dtype", "DTYPE_UNSPECIFIED"),
    (ONE, "inputs[0].shape", [3, -4], "inputs[0].shape[1]", "expected 1"),
    (ONE, "inputs[0].shape", [3, 0], "inputs[0].shape[1]", "expected 1"),
    (ONE, "inputs[0].shape", [3, 2**62], "inputs[0].shape[1]", "expected 1"),
    (ONE, "inputs[0].shape", [2**20, 2**20], "inputs[0].shape", "elements"),
    (ONE, "inputs[0].shape", [1] * 5, "inputs[0].shape", "at most 4"),
    (ONE, "inputs[0].shape", [], "operators[0].inputs[0]", "single number"),
    (ONE, f"{LINEAR}.in_features", 5, f"{LINEAR}.in_features", "expected 4 to match input 'x0' of shape [3, 4]"),
    (ONE, f"{LINEAR}.in_features", -4, f"{LINEAR}.in_features", "expected 1"),
    (ONE, f"{LINEAR}.out_features", 0, f"{LINEAR}.out_features", "expected 1"),
    (ONE, f"{LINEAR}.out_features", 2**62, f"{LINEAR}.out_features", "expected 1"),
    (ONE, "operators[1].position_embedding.tokens", 4, "operators[1].position_embedding.tokens", "expected 3"),
    (ONE, "operators[1].position_embedding.features", 9, "operators[1].position_embedding.features", "expected 8"),
    (ONE, "operators[2].layer_norm.features", 7, "operators[2].layer_norm.features", "expected 8"),
    (ONE, "operators[2].layer_norm.eps", 0, "operators[2].layer_norm.eps", "above 0"),
    (ONE, "operators[2].layer_norm.eps", -1e-5, "operators[2].layer_norm.eps", "above 0"),
    (ONE, f"{ATTENTION}.features", 16, f"{ATTENTION}.features", "expected 8"),
    (ONE, f"{ATTENTION}.num_heads", 3, f"{ATTENTION}.num_heads", "divisor"),
    (ONE, f"{ATTENTION}.num_heads", 0, f"{ATTENTION}.num_heads", "expected 1"),
    (ONE, "operators[4].inputs", ["x2", "x0"], "operators[4].inputs[1]", "expected [3, 8]"),
    (ONE, "operators[4].inputs", ["x2"], "operators[4].inputs", "expected 2"),
    (ONE, "operators[4].inputs", ["x2", "x2", "x4"], "operators[4].inputs", "at most 2"),
    (ONE, "operators[5].inputs", ["x9"], "operators[5].inputs[0]", "no operator before"),
    (ONE, "operators[5].inputs", ["x6"], "operators[5].inputs[0]", "no operator before"),
    (ONE, "operators[5].gelu", DELETE, "operators[5].kind", "expected one of add, gelu"),
    (ONE, "operators[6].inputs", ["x0"], "operators[7].linear.in_features", "expected 4"),
    (
        MID,
        "operators[1]",
        {"name": "p", "inputs": ["c"], "output": "d", "mean_pool": {}},
        "operators[1].inputs[0]",
        "[t",
    ),
    (
        MID,
        "operators[1]",
        RMS | {"rms_norm": {"features": 5, "eps": 1e-5}},
        "operators[1].rms_norm.features",
        "expected 6",
    ),
    (MID, "operators[1]", RMS | {"rms_norm": {"features": 6}}, "operators[1].rms_norm.eps", "above 0"),
    (MID, "operators[1]", RMS | {"inputs": ["c", "a"], "mul": {}}, "operators[1].inputs[1]", "expected [6]"),
    (MID, "operators[2].matmul", {}, "operators[2].matmul", "only one kind"),
    # outputs, loss, dead branches
    (MID, "outputs", [], "outputs", "at least one"),
    (MID, "outputs", ["e", "b", "z"], "outputs[2]", "no value"),
    (MID, "outputs", ["e", "b", "e"], "outputs[2]", "already"),
    (MID, "outputs", ["e", "b"], "inputs[2]", "reaches neither"),
    (MID, "outputs", ["b", "tag"], "operators[0].output", "never read"),
    (MID, "downstream", "middle", "downstream", "cycles"),
    (MID, "downstream", "a b", "downstream", "1 to 128"),
    (MID, "downstream", "", "loss", "expected one"),
    (MID, "loss", ONE["loss"], "loss", "only the last"),
    (MID, "targets", ONE["targets"], "targets", "only the VNode that owns the loss"),
    (ONE, "loss", DELETE, "loss", "expected one"),
    (ONE, "loss", {}, "loss.kind", "expected one of cross_entropy"),
    (ONE, "loss.cross_entropy.logits", "x77", "loss.cross_entropy.logits", "no value"),
    (ONE, "loss.cross_entropy.logits", "x6", "loss.cross_entropy.logits", "[classes]"),
    (ONE, "loss.cross_entropy.logits", "x7", "operators[7]", "does not reach the loss"),
    (ONE, "loss.cross_entropy.target", "x0", "loss.cross_entropy.target", "no target"),
    (ONE, "targets[0].dtype", "DTYPE_F32", "targets[0].dtype", "DTYPE_I64"),
    (ONE, "targets[0].shape", [2], "targets[0].shape", "one class"),
    (ONE, "targets", [*ONE["targets"], {"name": "u", "dtype": "DTYPE_I64"}], "targets[1]", "not read"),
    # optimizer, limits, policies
    (ONE, "optimizer", DELETE, "optimizer.kind", "expected one of adamw, sgd"),
    (ONE, "optimizer.adamw.lr", -0.1, "optimizer.adamw.lr", "above 0"),
    (ONE, "optimizer.adamw.lr", 0, "optimizer.adamw.lr", "above 0"),
    (ONE, "optimizer.adamw.beta1", 1, "optimizer.adamw.beta1", "below 1"),
    (ONE, "optimizer.adamw.beta2", -0.5, "optimizer.adamw.beta2", "at least 0"),
    (ONE, "optimizer.adamw.eps", 0, "optimizer.adamw.eps", "at least"),
    (ONE, "optimizer.adamw.weight_decay", -1, "optimizer.adamw.weight_decay", "at least 0"),
    (ONE, "optimizer.schedule.total_steps", 1, "optimizer.schedule.total_steps", "at least the 2"),
    (ONE, "optimizer.schedule.warmup_steps", 2**60, "optimizer.schedule.warmup_steps", "at most"),
    (ONE, "limits", DELETE, "limits.max_rows", "expected 1"),
    (ONE, "limits.max_rows", 2**60, "limits.max_rows", "expected 1"),
    (ONE, "limits.microbatch_rows", 65, "limits.microbatch_rows", "expected at most the 64 of max_rows"),
    (ONE, "limits.max_rows", 2**22, "limits.memory_bytes", "cannot hold"),
    (ONE, "limits.memory_bytes", 100, "limits.memory_bytes", "cannot hold"),
    (ONE, "limits.memory_bytes", 2**60, "limits.memory_bytes", "expected 1"),
    (ONE, "limits.cpu_s", 0, "limits.cpu_s", "above 0"),
    (ONE, "limits.wall_s", 1e9, "limits.wall_s", "below"),
    (ONE, "window", 0, "window", "expected 1 to 64"),
    (ONE, "window", 1000, "window", "expected 1 to 64"),
    (ONE, "checkpoint.keep", 0, "checkpoint.keep", "expected 1"),
]


@pytest.mark.parametrize(("document", "spoiled", "value", "path", "why"), BAD)
def test_a_bad_spec_is_refused_with_its_path(
    document: dict[str, Any], spoiled: str, value: Any, path: str, why: str
) -> None:
    with pytest.raises(SpecError) as refusal:
        parse_json(json.dumps(spoil(document, spoiled, value)))
    assert refusal.value.path == path
    assert why in refusal.value.why
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "spec"),
        ("{", "spec"),
        ("[]", "spec"),
        ("[" * 1_000_000, "spec"),
        ('{"id": "' + "x" * bounds.MAX_SPEC_BYTES + '"}', "spec"),
        (b'{"id": "\xff"}', "spec"),
        ('{"id": "a", "id": "b"}', "id"),
        ('{"limits": {"max_rows": 1, "maxRows": 2}}', "limits.maxRows"),
        ('{"limits": {"cpu_s": NaN}}', "limits.cpu_s"),
        ('{"limits": {"cpu_s": -Infinity}}', "limits.cpu_s"),
        ('{"limits": {"cpu_s": 1e999}}', "limits.cpu_s"),
        ('{"limits": {"cpu_s": "NaN"}}', "limits.cpu_s"),
        ('{"limits": {"cpu_s": ' + "9" * 1_000_000 + "}}", "limits.cpu_s"),
        ('{"seed": ' + "9" * 1_000_000 + "}", "seed"),
        ('{"id": "\\ud800"}', "id"),
        ('{"' + "k" * 1_000_000 + '": 1}', "k" * 60),
    ],
    ids=range(16),
)
def test_bad_json_is_refused(text: str | bytes, path: str) -> None:
    with pytest.raises(SpecError) as refusal:
        parse_json(text)
    assert refusal.value.path == path
    assert len(str(refusal.value)) < 500


@pytest.mark.timeout(60)
def test_a_million_operators_are_refused_by_their_number() -> None:
    text = json.dumps({"operators": [{}] * 200_000}, separators=(",", ":"))
    with pytest.raises(SpecError, match=r"operators: expected at most 4096 items, got 200000"):
        parse_json(text)
    many = spec_pb2.VNodeSpec(operators=[spec_pb2.Operator()] * 200_000)
    with pytest.raises(SpecError, match=r"operators: expected at most 4096, got 200000"):
        validate(many)
    with pytest.raises(SpecError, match=r"operators: expected at most 4096"):
        from_bytes(many.SerializeToString())


@pytest.mark.parametrize("document", [ONE, MID])
def test_a_spec_survives_json_and_bytes(document: dict[str, Any]) -> None:
    first = spec(document)
    assert parse_json(to_json(first)) == first
    assert parse_json(to_json(first).encode()) == first
    assert from_bytes(first.SerializeToString()) == first


def test_lower_camel_case_is_json_too() -> None:
    document = classifier()
    document["operators"][0]["linear"] = {"inFeatures": "4", "outFeatures": 8, "bias": True}
    assert spec(document) == spec(ONE)


def test_unknown_fields_of_bytes_are_refused_at_any_depth() -> None:
    unknown = b"\xba\x3e\x01x"  # field 999, one byte
    good = spec(ONE)
    with pytest.raises(SpecError, match=r"^spec: unknown field number 999"):
        from_bytes(good.SerializeToString() + unknown)
    nested = spec_pb2.Operator()
    nested.MergeFromString(good.operators[2].SerializeToString() + unknown)
    good.operators[2].CopyFrom(nested)
    with pytest.raises(SpecError, match=r"^operators\[2\]: unknown field number 999"):
        from_bytes(good.SerializeToString())


@pytest.mark.parametrize("raw", [b"\xff\xff", b"\x3a\xff\xff\xff\xff\x0f", b"x" * (bounds.MAX_SPEC_BYTES + 1)])
def test_bytes_that_are_no_spec_are_refused(raw: bytes) -> None:
    with pytest.raises(SpecError, match=r"^spec: "):
        from_bytes(raw)


@settings(max_examples=300, deadline=None)
@given(document=st.sampled_from([ONE, MID]), damage=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255))))
def test_damaged_bytes_are_a_good_spec_or_refused(document: dict[str, Any], damage: list[tuple[int, int]]) -> None:
    raw = bytearray(SERIALISED[document["id"]])
    for position, byte in damage:
        raw[position % len(raw)] = byte
    try:
        good = from_bytes(bytes(raw))
    except SpecError as error:
        assert error.path  # noqa: PT017 - either outcome is right
        return
    assert parse_json(to_json(good)) == good


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["x0", "kind", "add"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(story=st.data(), document=st.sampled_from([ONE, MID]), value=JSON)
def test_any_json_in_any_place_is_a_good_spec_or_refused(
    story: st.DataObject, document: dict[str, Any], value: Any
) -> None:
    path = story.draw(st.sampled_from(sorted(_paths(document))))
    try:
        good = parse_json(json.dumps(spoil(document, path, value)))
    except SpecError as error:
        assert error.path  # noqa: PT017 - either outcome is right
        return
    assert from_bytes(good.SerializeToString()) == good


def _paths(value: Any, path: str = "") -> set[str]:
    found = {path} if path else set()
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        here = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}".lstrip(".")
        found |= _paths(item, here)
    return found


def test_an_unknown_dtype_of_bytes_is_refused() -> None:
    good = spec(ONE)
    good.inputs[0].dtype = 99  # type: ignore[assignment]  # proto3 enums are open: any number arrives
    with pytest.raises(SpecError, match=r"^inputs\[0\].dtype: .* got dtype 99"):
        validate(good)
