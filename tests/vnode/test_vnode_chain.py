"""Chains of specs: what fits, and what is refused, with its path."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
from vnode_models import classifier, spec, spoil

from pnode.errors import SpecError
from pnode.v1 import spec_pb2
from pnode.vnode.chain import MAX_VNODES, validate_chain


def cut_classifier(*cuts: int) -> list[dict[str, Any]]:
    """The classifier as VNodes v0, v1, ..: each cut stands before an operator. A value read below is handed down."""
    whole = classifier()
    operators, bounds = whole["operators"], [0, *cuts, len(whole["operators"])]
    shapes = {"x0": [3, 4], "x7": [8], "logits": [5]}
    stages, inputs = [], ["x0"]
    for index, (low, high) in enumerate(itertools.pairwise(bounds)):
        stage = classifier(id=f"v{index}", operators=operators[low:high])
        stage["inputs"] = [{"name": name, "dtype": 1, "shape": shapes.get(name, [3, 8])} for name in inputs]
        if high < len(operators):
            below = [name for op in operators[high:] for name in op["inputs"]]
            defined = [*inputs, *(op["output"] for op in operators[low:high])]
            inputs = [name for name in defined if name in below]
            stage |= {"downstream": f"v{index + 1}", "outputs": inputs, "targets": []}
            del stage["loss"]
        stages.append(stage)
    return stages


def specs_of(stages: list[dict[str, Any]]) -> list[spec_pb2.VNodeSpec]:
    return [spec(stage) for stage in stages]


@pytest.mark.parametrize("cuts", [(), (1,), (3,), (4,), (2, 4), (3, 4, 7), (1, 2, 3, 4, 5, 6, 7)])
def test_cuts_of_one_model_are_chains(cuts: tuple[int, ...]) -> None:
    validate_chain(specs_of(cut_classifier(*cuts)))


BAD: list[tuple[str, Any, str, str]] = [
    ("[1].run", "other", "vnodes[1].run", "differs"),
    ("[1].seed", 8, "vnodes[1].seed", "differs"),
    ("[1].profile", "torch", "vnodes[1].profile", "differs"),
    ("[2].optimizer.adamw.lr", 0.02, "vnodes[2].optimizer", "differs"),
    ("[1].id", "v0", "vnodes[1].id", "already"),
    ("[0].downstream", "v2", "vnodes[0].downstream", "expected 'v1'"),
    ("[1].downstream", "v0", "vnodes[1].downstream", "expected 'v2'"),
    ("[1].operators[0].name", "embed", "vnodes[1].operators[0].name", "already"),
    ("[2].operators[3].name", "norm", "vnodes[2].operators[3].name", "already"),
]


@pytest.mark.parametrize(("spoiled", "value", "path", "why"), BAD)
def test_a_bad_chain_is_refused_with_its_path(spoiled: str, value: Any, path: str, why: str) -> None:
    stages = cut_classifier(2, 4)
    index, _, field = spoiled[1:].partition("].")
    stages[int(index)] = spoil(stages[int(index)], field, value)
    chain = specs_of(stages)
    with pytest.raises(SpecError) as refusal:
        validate_chain(chain)
    assert refusal.value.path == path
    assert why in refusal.value.why


def test_what_comes_in_must_be_what_went_out() -> None:
    stages = cut_classifier(1)
    renamed = json.loads(json.dumps(stages[1]).replace('"x1"', '"y1"'))
    with pytest.raises(SpecError, match=r"^vnodes\[1\].inputs\[0\].name: expected 'x1', the output of 'v0'; got 'y1'"):
        validate_chain(specs_of([stages[0], renamed]))
    stages = cut_classifier(7)
    stages[0]["outputs"] = ["x6"]
    stages[0]["operators"].pop()
    with pytest.raises(SpecError, match=r"^vnodes\[1\].inputs\[0\].name: expected 'x6'"):
        validate_chain(specs_of(stages))
    stages = cut_classifier(5)
    stages[1]["inputs"][0]["shape"] = [9, 8]
    with pytest.raises(SpecError, match=r"^vnodes\[1\].inputs\[0\].shape: expected \[3, 8\], got \[9, 8\]"):
        validate_chain(specs_of(stages))


def test_a_value_is_defined_once_in_the_whole_chain() -> None:
    stages = cut_classifier(2, 4)
    last = json.loads(json.dumps(stages[2]).replace('"x6"', '"x1"'))
    with pytest.raises(SpecError, match=r"^vnodes\[2\].operators\[1\].output: 'x1' is there already"):
        validate_chain(specs_of([*stages[:2], last]))


def test_a_spec_that_is_bad_alone_is_refused_under_its_place() -> None:
    chain = specs_of(cut_classifier(2, 4))
    chain[1].operators[0].layer_norm.eps = -1.0
    with pytest.raises(SpecError, match=r"^vnodes\[1\].operators\[0\].layer_norm.eps: "):
        validate_chain(chain)


def test_the_number_of_vnodes_is_bounded() -> None:
    with pytest.raises(SpecError, match=r"^vnodes: "):
        validate_chain([])
    with pytest.raises(SpecError, match=r"^vnodes: "):
        validate_chain([spec_pb2.VNodeSpec()] * (MAX_VNODES + 1))


def test_outputs_and_inputs_must_be_as_many() -> None:
    stages = cut_classifier(3)
    stages[1]["inputs"].append({"name": "more", "dtype": 1, "shape": [3, 8]})
    stages[1]["operators"][0]["inputs"] = ["x3"]
    stages[1]["operators"].insert(1, {"name": "also", "inputs": ["x4", "more"], "output": "x4b", "add": {}})
    stages[1]["operators"][2]["inputs"] = ["x2", "x4b"]
    with pytest.raises(SpecError, match=r"^vnodes\[1\].inputs: expected the 2 outputs of 'v0', got 3"):
        validate_chain(specs_of(stages))


def test_only_the_last_owns_the_loss() -> None:
    stages = cut_classifier(4)
    stages[1] = {**stages[1], "downstream": "v2"}
    with pytest.raises(SpecError, match=r"^loss: "):
        spec(stages[1])
    with pytest.raises(SpecError, match=r"^vnodes\[0\].downstream: expected none"):
        validate_chain(specs_of([stages[0]]))


def thrice_read(*cuts: int) -> list[dict[str, Any]]:
    """x1 is read by three operators; cut before the operators at `cuts`."""
    whole = classifier()
    adds = [
        {"name": "one", "inputs": ["x1"], "output": "y1", "relu": {}},
        {"name": "two", "inputs": ["y1", "x1"], "output": "y2", "add": {}},
        {"name": "three", "inputs": ["y2", "x1"], "output": "y3", "add": {}},
    ]
    tail = copy.deepcopy(whole["operators"][6:])
    tail[0]["inputs"] = ["y3"]
    operators = [whole["operators"][0], *adds, *tail]
    (cut,) = cuts
    below = [name for op in operators[cut:] for name in op["inputs"]]
    defined = ["x0", *(op["output"] for op in operators[:cut])]
    handed = [name for name in defined if name in below]
    top = classifier(id="v0", operators=operators[:cut], outputs=handed, targets=[], downstream="v1")
    del top["loss"]
    bottom = classifier(id="v1", operators=operators[cut:])
    bottom["inputs"] = [{"name": name, "dtype": 1, "shape": [3, 8]} for name in handed]
    return [top, bottom]


def test_a_cut_through_a_fan_out_keeps_one_reader_below() -> None:
    validate_chain(specs_of(thrice_read(1)))  # all three below
    validate_chain(specs_of(thrice_read(3)))  # two above, one below
    validate_chain(specs_of(thrice_read(4)))  # all three above
    with pytest.raises(SpecError, match=r"^vnodes\[1\].inputs\[0\]: 'x1' is read above this cut and 2 times below"):
        validate_chain(specs_of(thrice_read(2)))
