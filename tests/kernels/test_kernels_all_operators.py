"""What every public operator holds: no bit depends on threads, company, strides or microbatches."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import pytest
import samebits
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, seeds, strided
from operator_table import ENTRIES, Entry, public_operators, upstream
from torch import Tensor

EVERY = pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
FREE = {key: entry for key, entry in ENTRIES.items() if entry.rows_are_free}
LEARNING = {key: entry for key, entry in ENTRIES.items() if entry.parameters}
ROWS = st.sampled_from([1, 2, 3, 7, 16, 17, 33])
FEW = settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def no_work_is_small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have every operator share its work out, wherever it says from what size on."""
    for name, module in list(sys.modules.items()):
        for bound in ("GRAIN", "WORTH_THREADS", "WORTH_A_SHARE"):
            if name.startswith("samebits.") and hasattr(module, bound):
                monkeypatch.setattr(module, bound, 1)
    yield
    samebits.set_num_threads(1)


def assert_all_same(left: list[Tensor], right: list[Tensor]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype
        assert_same_bits(one.float(), other.float())


def copies(inputs: list[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]


def activations(inputs: list[Tensor]) -> list[Tensor]:
    """Copies that autograd sees through: what a model computes is no leaf.

    add and mul take a leaf's axes of one element for broadcast ones.
    """
    return [x.clone() for x in inputs]


def test_the_table_has_every_public_operator() -> None:
    assert {entry.operator for entry in ENTRIES.values()} == public_operators()


@EVERY
@given(ROWS, seeds(), flavours())
@FEW
def test_threads_change_nothing(no_work_is_small: None, entry: Entry, rows: int, seed: int, flavour: str) -> None:
    inputs, results = entry.inputs(seed, flavour, rows), []
    for num_threads in (1, 2, 3):
        samebits.set_num_threads(num_threads)
        results.append(entry.both(inputs, seed))
    for other in results[1:]:
        assert_all_same(results[0], other)


@pytest.mark.parametrize("entry", FREE.values(), ids=list(FREE))
@given(ROWS, seeds(), flavours(), st.data())
@FEW
def test_a_row_alone_equals_the_row_in_company(
    entry: Entry, rows: int, seed: int, flavour: str, data: st.DataObject
) -> None:
    inputs, row = entry.inputs(seed, flavour, rows), data.draw(st.integers(0, rows - 1))
    out = entry.call(*activations(inputs))
    grad = upstream(out, seed)
    alone = copies([x[row : row + 1] if i < len(entry.batch) else x for i, x in enumerate(inputs)])
    for x, leaf in zip(alone, inputs, strict=True):
        x.requires_grad_(leaf.requires_grad)
    out_alone = entry.call(*activations(alone))
    assert_all_same([out_alone], [out[row : row + 1]])
    if wanted := [i for i in range(len(entry.batch)) if inputs[i].requires_grad]:
        whole = torch.autograd.grad(out, [inputs[i] for i in wanted], grad)
        part = torch.autograd.grad(out_alone, [alone[i] for i in wanted], grad[row : row + 1])
        assert_all_same(list(part), [x[row : row + 1] for x in whole])


@EVERY
@given(ROWS, st.integers(1, 3), seeds(), flavours())
@FEW
def test_strides_change_nothing(entry: Entry, rows: int, layout: int, seed: int, flavour: str) -> None:
    inputs = entry.inputs(seed, flavour, rows)
    spread = [strided(x.detach().numpy(), layout).requires_grad_() if x.requires_grad else x for x in inputs]
    spread = [x if x.requires_grad else torch.stack([x, x], -1)[..., 0] for x in spread]
    assert_all_same(entry.both(spread, seed), entry.both(inputs, seed))
    out = entry.call(*inputs)
    grad = upstream(out, seed)
    if grad.dtype is torch.float32:
        grad = strided(grad.numpy(), layout)
    leaves = [x for x in inputs if x.requires_grad]
    assert_all_same(list(torch.autograd.grad(out, leaves, grad)), entry.both(inputs, seed)[1:])


@pytest.mark.parametrize("entry", LEARNING.values(), ids=list(LEARNING))
@given(ROWS, seeds(), flavours(), st.data())
@FEW
def test_microbatches_in_order_equal_the_batch(
    entry: Entry, rows: int, seed: int, flavour: str, data: st.DataObject
) -> None:
    inputs, num_batch = entry.inputs(seed, flavour, rows), len(entry.batch)
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=3)))
    grad, found = upstream(entry.call(*inputs), seed), []
    for edges in ([0, rows], [0, *cuts, rows]):
        parameters = copies(inputs[num_batch:])
        for begin, end in itertools.pairwise(edges):
            out = entry.call(*[x.detach()[begin:end] for x in inputs[:num_batch]], *parameters)
            torch.autograd.backward(out, grad[begin:end])
        found.append([x.grad for x in parameters if x.grad is not None])
        assert len(found[-1]) == len(parameters)
    assert_all_same(*found)


@EVERY
def test_no_rows_at_all(entry: Entry) -> None:
    inputs = entry.inputs(1, "plain", 0)
    out, *grads = entry.both(inputs, 1)
    assert out.dim() == 0 or out.shape[0] == 0
    for x, grad in zip([x for x in inputs if x.requires_grad], grads, strict=True):
        assert_same_bits(grad, torch.zeros(x.shape))
