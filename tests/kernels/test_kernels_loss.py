"""cross_entropy and row_sum equal their plain loops bit for bit, and carry a batch through microbatches."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds, strided
from numpy.typing import NDArray
from samebits.reference import rows as reference

ROWS = st.sampled_from([0, 1, 2, 15, 16, 17, 33])
CLASSES = st.sampled_from([1, 2, 3, 10, 16, 17, 37])
FEW = settings(deadline=None, max_examples=60)
QUIET = np.errstate(all="ignore")


def targets(seed: int, rows: int, classes: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, classes, rows)


@given(ROWS, CLASSES, st.integers(0, 3), st.sampled_from([None, 1, 7, 64]), seeds(), flavours())
@FEW
@QUIET
def test_mean(rows: int, classes: int, layout: int, count: int | None, seed: int, flavour: str) -> None:
    x, t, g = floats(seed, flavour, rows, classes), targets(seed, rows, classes), floats(seed + 1, "plain", 1)[0]
    tensor, whole = strided(x, layout).requires_grad_(), count or rows
    loss = samebits.cross_entropy(tensor, torch.from_numpy(t), count=count)
    if whole == 0:
        assert loss.isnan()
        return
    assert_same_bits(loss, np.array(reference.mean_loss(x, t, whole)))
    (grad,) = torch.autograd.grad(loss, tensor, torch.tensor(g))
    assert_same_bits(grad, reference.mean_loss_backward(g, x, t, whole))


@given(ROWS, CLASSES, st.integers(0, 3), seeds(), flavours())
@FEW
@QUIET
def test_none(rows: int, classes: int, layout: int, seed: int, flavour: str) -> None:
    x, t, g = floats(seed, flavour, rows, classes), targets(seed, rows, classes), floats(seed + 1, "special", rows)
    tensor = strided(x, layout).requires_grad_()
    losses = samebits.cross_entropy(tensor, torch.from_numpy(t), reduction="none")
    assert_same_bits(losses, reference.losses(x, t))
    (grad,) = torch.autograd.grad(losses, tensor, strided(g, layout))
    assert_same_bits(grad, reference.losses_backward(g, x, t))


@given(st.sampled_from([0, 1, 2, 17, 100]), st.integers(0, 3), seeds(), flavours())
@FEW
@QUIET
def test_row_sum(rows: int, layout: int, seed: int, flavour: str) -> None:
    values, start = floats(seed, flavour, rows), floats(seed + 1, flavour, 1)[0]
    tensor, begin = strided(values, layout).requires_grad_(), torch.tensor(start, requires_grad=True)
    total = samebits.row_sum(tensor, begin)
    assert_same_bits(total, np.array(reference.ascending_sum(values, start)))
    grad_values, grad_start = torch.autograd.grad(total, (tensor, begin), torch.tensor(2.5))
    assert_same_bits(grad_values, np.full(rows, 2.5, np.float32))
    assert grad_start == 2.5


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_microbatches_are_the_whole_batch(parts: int) -> None:
    x, t = torch.from_numpy(floats(3, "plain", 21, 10)), torch.from_numpy(targets(3, 21, 10))
    whole = x.clone().requires_grad_()
    loss = samebits.cross_entropy(whole, t)
    loss.backward()
    total, grads = torch.tensor(0.0), []
    for rows, classes in zip(x.chunk(parts), t.chunk(parts), strict=True):
        part = rows.clone().requires_grad_()
        samebits.cross_entropy(part, classes, count=21).backward()
        grads.append(part.grad)
        total = samebits.row_sum(samebits.cross_entropy(rows, classes, reduction="none"), total)
    assert_same_bits(total * float(np.float32(1 / 21)), loss)
    assert whole.grad is not None
    assert_same_bits(torch.cat([grad for grad in grads if grad is not None]), whole.grad)


def test_threads_change_nothing(shared_out: None) -> None:
    x, t = torch.from_numpy(floats(3, "plain", 100, 33)).requires_grad_(), torch.from_numpy(targets(3, 100, 33))
    two = samebits.cross_entropy(x, t, reduction="none")
    (grad_two,) = torch.autograd.grad(two, x, torch.ones(100))
    samebits.set_num_threads(1)
    one = samebits.cross_entropy(x, t, reduction="none")
    (grad_one,) = torch.autograd.grad(one, x, torch.ones(100))
    assert_same_bits(one, two)
    assert_same_bits(grad_one, grad_two)


@pytest.mark.parametrize("bad", [-1, 3, -100, 2**40])
def test_a_target_that_is_no_class(bad: int) -> None:
    with pytest.raises(IndexError, match=rf"^cross_entropy: target {bad} of row 1 is not in 0..2"):
        samebits.cross_entropy(torch.ones(2, 3), torch.tensor([0, bad]))


def test_bad_arguments() -> None:
    x, t = torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"^cross_entropy: target must be torch.int64, not torch.int32"):
        samebits.cross_entropy(x, t.int())
    with pytest.raises(ValueError, match=r"^cross_entropy: logits \[2, 3\] and target \[3\] do not fit"):
        samebits.cross_entropy(x, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"^cross_entropy: reduction must be one of"):
        samebits.cross_entropy(x, t, reduction="max")
    for count in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"^cross_entropy: count must be a positive int"):
            samebits.cross_entropy(x, t, count=count)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match=r"^row_sum: values must be \[B\]"):
        samebits.row_sum(x, 0.0)
    with pytest.raises(TypeError, match=r"^row_sum: start must be torch.float32"):
        samebits.row_sum(x[0], torch.tensor(0.0, dtype=torch.float64))
