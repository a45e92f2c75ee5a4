"""Requests judged by a spec, before anyone knows torch: names, dtypes, shapes and numbers of rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from vnode_models import classifier, middle, spec

from pnode.errors import BadRequest
from pnode.v1.tensor_pb2 import DTYPE_BF16, DTYPE_F32, DTYPE_I32, DTYPE_I64
from pnode.vnode.requests import Requests
from pnode.vnode.tensors import TensorBytes, num_bytes

ROWS = 6


def tensor(name: str, *shape: int, dtype: int = DTYPE_F32) -> TensorBytes:
    return TensorBytes(name, dtype, shape, bytes(num_bytes(dtype, shape)))


def label(*shape: int, dtype: int = DTYPE_I64) -> TensorBytes:
    return tensor("label", *shape, dtype=dtype)


X, LABEL = tensor("x0", ROWS, 3, 4), label(ROWS)
BAD_INPUTS: list[tuple[Sequence[TensorBytes], str]] = [
    ([], "input 'x0' is missing"),
    ([X, tensor("x9", ROWS, 3, 4)], r"input 'x9' is not one of \['x0'\]"),
    ([tensor("x0", ROWS, 3, 4, dtype=DTYPE_BF16)], "input 'x0': expected DTYPE_F32, got DTYPE_BF16"),
    ([tensor("x0", ROWS, 2, 4)], r"expected \[rows, \*\[3, 4\]\], got \[6, 2, 4\]"),
    ([tensor("x0", 3, 4)], r"got \[3, 4\]"),
    ([tensor("x0")], r"got \[\]"),
    ([tensor("x0", 0, 3, 4)], "expected 1 to 64 rows"),
    ([tensor("x0", 65, 3, 4)], "expected 1 to 64 rows"),
]


@pytest.mark.parametrize(("inputs", "why"), BAD_INPUTS)
def test_inputs_are_those_of_the_spec(inputs: Sequence[TensorBytes], why: str) -> None:
    requests = Requests(spec(classifier()))
    with pytest.raises(BadRequest, match=why):
        requests.forward(inputs)
    targets = [label(each.shape[0] if each.shape else 1) for each in inputs[:1]] or [LABEL]
    with pytest.raises(BadRequest, match=why):
        requests.microbatch(inputs, targets)


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        ([], "target 'label' is missing"),
        ([LABEL, tensor("more", ROWS, dtype=DTYPE_I64)], "target 'more' is not one of"),
        ([label(ROWS, dtype=DTYPE_I32)], "expected DTYPE_I64, got DTYPE_I32"),
        ([label(2)], r"different numbers of rows: \[2, 6\]"),
        ([label(ROWS, 1)], r"expected \[rows, \*\[\]\], got \[6, 1\]"),
    ],
)
def test_targets_are_those_of_the_spec(targets: Sequence[TensorBytes], why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        Requests(spec(classifier())).microbatch([X], targets)


def test_a_microbatch_has_its_own_most_rows_and_a_forward_may_have_more() -> None:
    bounded = spec(classifier())
    bounded.limits.microbatch_rows = ROWS - 1
    requests = Requests(bounded)
    with pytest.raises(BadRequest, match=rf"expected 1 to {ROWS - 1} rows of a microbatch, got {ROWS}"):
        requests.microbatch([X], [LABEL])
    assert requests.microbatch([tensor("x0", ROWS - 1, 3, 4)], [label(ROWS - 1)]) == ROWS - 1
    assert requests.forward([tensor("x0", 64, 3, 4)]) == 64
    with pytest.raises(BadRequest, match=r"expected 1 to 64 rows \(limits\.max_rows\), got 65"):
        requests.forward([tensor("x0", 65, 3, 4)])


def test_inputs_have_one_number_of_rows_and_targets_that_are_passed_on_no_more_than_theirs() -> None:
    requests = Requests(spec(middle()))
    given = [tensor("a", ROWS, 4), tensor("b", ROWS, 6), tensor("tag", ROWS, dtype=DTYPE_I64)]
    assert requests.forward(given) == requests.microbatch(given, [tensor("any", ROWS, dtype=DTYPE_I64)]) == ROWS
    with pytest.raises(BadRequest, match=r"the inputs have different numbers of rows: \[5, 6\]"):
        requests.forward([tensor("a", ROWS - 1, 4), *given[1:]])
    with pytest.raises(BadRequest, match="56 bytes of targets for 6 rows"):
        requests.microbatch(given, [tensor("any", ROWS + 1, dtype=DTYPE_I64)])


G = tensor("e", ROWS, 6), tensor("b", ROWS, 6)


@pytest.mark.parametrize(
    ("gradients", "why"),
    [
        ([], "output gradient 'b' is missing"),
        (G[:1], "output gradient 'b' is missing"),
        ([*G, tensor("tag", ROWS, dtype=DTYPE_I64)], r"output gradient 'tag' is not one of \['e', 'b'\]"),
        ([tensor("e", 2, 6), G[1]], r"output gradients have \[2, 6\] rows, their microbatch has 6"),
        ([tensor("e", ROWS, 5), G[1]], r"output gradient 'e': expected \[rows, \*\[6\]\], got \[6, 5\]"),
        ([G[0], tensor("b", ROWS, 6, dtype=DTYPE_I64)], "output gradient 'b': expected DTYPE_F32, got DTYPE_I64"),
    ],
)
def test_every_float_output_gets_its_gradient_and_nothing_else_does(gradients: Sequence[TensorBytes], why: str) -> None:
    requests = Requests(spec(middle()))
    requests.gradients(G, ROWS)
    with pytest.raises(BadRequest, match=why):
        requests.gradients(gradients, ROWS)
