"""Shapes and parameters that follow from a spec."""

from __future__ import annotations

import pytest
from vnode_models import classifier, middle, spec, spoil

from pnode.errors import SpecError
from pnode.v1 import tensor_pb2
from pnode.vnode import allow_list

ONE = classifier()
MID = middle()
SERIALISED = {document["id"]: spec(document).SerializeToString() for document in (ONE, MID)}
LINEAR = "operators[0].linear"
ATTENTION = "operators[3].multihead_attention"


def test_shapes_and_parameters_of_a_good_spec() -> None:
    good = spec(ONE)
    values = allow_list.value_shapes(good)
    assert [(value.name, value.shape) for value in values.values()] == [
        ("x0", (3, 4)),
        ("x1", (3, 8)),
        ("x2", (3, 8)),
        ("x3", (3, 8)),
        ("x4", (3, 8)),
        ("x5", (3, 8)),
        ("x6", (3, 8)),
        ("x7", (8,)),
        ("logits", (5,)),
    ]
    assert {value.dtype for value in values.values()} == {tensor_pb2.DTYPE_F32}
    assert [(name, shape) for name, shape, _ in allow_list.parameter_specs(good)] == [
        ("embed.weight", (8, 4)),
        ("embed.bias", (8,)),
        ("place.weight", (3, 8)),
        ("norm.weight", (8,)),
        ("norm.bias", (8,)),
        ("mix.qkv.weight", (24, 8)),
        ("mix.qkv.bias", (24,)),
        ("mix.out.weight", (8, 8)),
        ("mix.out.bias", (8,)),
        ("head.weight", (5, 8)),
    ]


def test_parameters_of_two_operators_may_not_share_a_name() -> None:
    document = spoil(ONE, "operators[7].name", "mix.qkv")
    with pytest.raises(SpecError, match=r"^operators\[7\].name: parameter 'mix.qkv.weight'"):
        spec(document)


@pytest.mark.parametrize(
    ("a", "b", "shape"),
    [([2, 3], [3, 5], (2, 5)), ([4, 2, 3], [4, 3, 5], (4, 2, 5)), ([2, 3], [2, 5], None), ([3], [3, 5], None)],
)
def test_matmul_takes_rows_with_their_own_axes(a: list[int], b: list[int], shape: tuple[int, ...] | None) -> None:
    document = middle()
    document["inputs"] = [{"name": name, "dtype": 1, "shape": dims} for name, dims in (("a", a), ("b", b))]
    document["operators"] = [{"name": "m", "inputs": ["a", "b"], "output": "c", "matmul": {}}]
    document["outputs"] = ["c"]
    if shape is not None:
        assert allow_list.value_shapes(spec(document))["c"].shape == shape
        return
    with pytest.raises(SpecError, match=r"^operators\[0\].inputs\["):
        spec(document)


def test_softmax_needs_an_axis_within_the_row() -> None:
    document = middle()
    document["inputs"] = [{"name": "a", "dtype": 1, "shape": []}]
    document["operators"] = [{"name": "m", "inputs": ["a"], "output": "c", "softmax": {}}]
    document["outputs"] = ["c"]
    with pytest.raises(SpecError, match=r"^operators\[0\].inputs\[0\]: .*single number"):
        spec(document)
