"""Cutting a model: the same operators in the same order, the values that cross passed along."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnode.client.cut import Plan, balanced, crossing, cut
from pnode.client.model import Model, transformer_classifier
from pnode.errors import SpecError
from pnode.vnode.allow_list import parameter_specs

MODEL = transformer_classifier(tokens=9, in_features=16, features=128, num_blocks=3, num_heads=4, mlp=4, classes=10)


def test_the_model_of_the_main_job_has_more_than_half_a_million_parameters() -> None:
    assert MODEL.num_parameters == 599_690


@given(st.integers(1, 29))
def test_balanced_places_are_as_many_as_asked_and_ascend(stages: int) -> None:
    places = balanced(MODEL, stages)
    assert len(places) == stages - 1
    assert places == sorted(set(places))


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 6])
def test_stages_are_a_chain_with_all_operators_in_order(stages: int, model: Model, plan: Plan) -> None:
    specs = cut(model, plan, stages=stages)
    assert [op.name for spec in specs for op in spec.operators] == [op.name for op in model.operators]
    whole = [parameter.name for parameter in parameter_specs(cut(model, plan)[0])]
    assert [parameter.name for spec in specs for parameter in parameter_specs(spec)] == whole
    assert [spec.id for spec in specs] == [f"stage{number}" for number in range(1, stages + 1)]
    assert [spec.downstream for spec in specs] == [f"stage{number}" for number in range(2, stages + 1)] + [""]
    for upper, lower in itertools.pairwise(specs):
        assert list(upper.outputs) == [given.name for given in lower.inputs]
    assert [spec.HasField("loss") for spec in specs] == [False] * (stages - 1) + [True]


def test_three_stages_of_the_main_job_are_three_blocks() -> None:
    ends = [MODEL.operators[place - 1].name for place in balanced(MODEL, 3)]
    assert ends == ["block0.add2", "block1.add2"]


def test_a_residual_that_crosses_a_cut_is_passed_along(model: Model, plan: Plan) -> None:
    place = [op.name for op in model.operators].index("block0.mlp.up")
    assert crossing(model, place) == ["block0.add1", "block0.norm2"]
    far = [op.name for op in model.operators].index("block0.mlp.down")
    specs = cut(model, plan, boundaries=[place, far])
    assert list(specs[1].outputs) == ["block0.add1", "block0.mlp.gelu"]
    assert "block0.add1" not in {op.output for op in specs[1].operators}, "it passes through the one in the middle"


@pytest.mark.parametrize("boundaries", [[0], [29], [5, 5], [7, 3], [-1]])
def test_boundaries_that_cut_nothing_are_refused(boundaries: list[int], plan: Plan) -> None:
    with pytest.raises(SpecError, match="boundaries"):
        cut(MODEL, plan, boundaries=boundaries)


@pytest.mark.parametrize("stages", [0, 30])
def test_a_number_of_stages_that_cannot_be_is_refused(stages: int, plan: Plan) -> None:
    with pytest.raises(SpecError, match="stages"):
        cut(MODEL, plan, stages=stages)
