"""log_softmax, softmax along any axis, rms_norm and mse_loss equal their plain loops bit for bit, both ways."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds, strided
from samebits.reference import reductions
from samebits.reference import rows as reference
from test_kernels_norms import COLUMNS, EPS, FEW, LAYOUTS, QUIET, ROWS


@given(ROWS, COLUMNS, LAYOUTS, seeds(), flavours())
@FEW
@QUIET
def test_log_softmax(rows: int, columns: int, layout: int, seed: int, flavour: str) -> None:
    x, g = floats(seed, flavour, rows, columns), floats(seed + 1, "special", rows, columns)
    tensor = strided(x, layout).requires_grad_()
    y = samebits.log_softmax(tensor)
    assert_same_bits(y, reference.log_softmax(x))
    assert_same_bits(samebits.log_softmax(tensor.detach()), reference.log_softmax(x))
    (grad,) = torch.autograd.grad(y, tensor, strided(g, layout))
    assert_same_bits(grad, reference.log_softmax_backward(g, x))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_any_axis(name: str, dim: int) -> None:
    fast, x = getattr(samebits, name), torch.from_numpy(floats(1, "plain", 5, 7, 19)).requires_grad_()
    g = torch.from_numpy(floats(2, "plain", 5, 7, 19))
    y = fast(x, dim)
    (grad,) = torch.autograd.grad(y, x, g)
    moved = x.detach().movedim(dim, -1).contiguous().requires_grad_()
    expected = fast(moved)
    (moved_grad,) = torch.autograd.grad(expected, moved, g.movedim(dim, -1))
    assert_same_bits(y, expected.movedim(-1, dim))
    assert_same_bits(grad, moved_grad.movedim(-1, dim))


@given(ROWS, COLUMNS, LAYOUTS, EPS, seeds(), flavours())
@FEW
@QUIET
def test_rms_norm(rows: int, columns: int, layout: int, eps: float, seed: int, flavour: str) -> None:
    x, g = floats(seed, flavour, rows, columns), floats(seed + 1, flavour, rows, columns)
    w, zeros = floats(seed + 2, flavour, columns), np.zeros(columns, np.float32)
    tensor, weight = (strided(value, layout).requires_grad_() for value in (x, w))
    y = samebits.rms_norm(tensor, weight, eps)
    assert_same_bits(y, reference.rms_norm(x, w, eps))
    grads = torch.autograd.grad(y, (tensor, weight), strided(g, layout))
    dx, dw = reference.rms_norm_backward(g, x, w, eps, zeros)
    assert_same_bits(grads[0], dx)
    assert_same_bits(grads[1], dw)
    weight.grad = torch.from_numpy(dw.copy())
    samebits.rms_norm(tensor.detach(), weight, eps).backward(strided(g, layout))
    assert_same_bits(weight.grad, reference.rms_norm_backward(g, x, w, eps, dw)[1])


@pytest.mark.parametrize("columns", [127, 511, 513])
@QUIET
def test_long_rows(columns: int) -> None:
    x, g, w = (floats(i, "plain", 18, columns) for i in range(3))
    tensor, weight = torch.from_numpy(x).requires_grad_(), torch.from_numpy(w[0]).requires_grad_()
    y, z = samebits.rms_norm(tensor, weight, 1e-6), samebits.log_softmax(tensor)
    assert_same_bits(y, reference.rms_norm(x, w[0], 1e-6))
    assert_same_bits(z, reference.log_softmax(x))
    (dx,) = torch.autograd.grad(y, tensor, torch.from_numpy(g))
    (dz,) = torch.autograd.grad(z, tensor, torch.from_numpy(g))
    assert_same_bits(dx, reference.rms_norm_backward(g, x, w[0], 1e-6, np.zeros(columns, np.float32))[0])
    assert_same_bits(dz, reference.log_softmax_backward(g, x))


SHAPES = st.sampled_from([(), (0,), (7,), (3, 5), (2, 3, 17), (33, 1), (5, 1031)])


@given(
    SHAPES, LAYOUTS, st.sampled_from(["mean", "sum", "none"]), st.sampled_from([None, 1, 7, 64]), seeds(), flavours()
)
@settings(deadline=None, max_examples=120)
@QUIET
def test_mse_loss(
    shape: tuple[int, ...], layout: int, reduction: str, count: int | None, seed: int, flavour: str
) -> None:
    x, t = floats(seed, flavour, *shape), floats(seed + 1, flavour, *shape)
    tensor, target = strided(x, layout).requires_grad_(), strided(t, layout).requires_grad_()
    loss, d = samebits.mse_loss(tensor, target, reduction, count), x - t
    whole = x.size if count is None else count
    factor = (np.float32(1.0 / whole) if whole else np.float32(np.inf)) if reduction == "mean" else np.float32(1.0)
    squares = np.asarray(d * d, np.float32)
    total = np.asarray(reductions.sums(squares, range(len(shape))).reshape(()) * factor)
    assert_same_bits(loss, squares if reduction == "none" else total)
    g = floats(seed + 2, "special", *loss.shape)
    grad_x, grad_t = torch.autograd.grad(loss, (tensor, target), torch.from_numpy(g))
    assert_same_bits(grad_x, np.asarray(((d + d) * factor) * g, np.float32))
    e = t - x
    assert_same_bits(grad_t, np.asarray(((e + e) * factor) * g, np.float32))


def test_cross_entropy_summed() -> None:
    x, t = floats(1, "plain", 19, 11), np.arange(19) % 11
    tensor = torch.from_numpy(x).requires_grad_()
    loss = samebits.cross_entropy(tensor, torch.from_numpy(t), reduction="sum")
    assert_same_bits(loss, np.asarray(reference.ascending_sum(reference.losses(x, t))))
    (grad,) = torch.autograd.grad(loss, tensor, torch.tensor(0.75))
    assert_same_bits(grad, reference.losses_backward(np.full(19, 0.75, np.float32), x, t))


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_microbatches_are_the_whole_batch(parts: int) -> None:
    x, g = torch.from_numpy(floats(1, "plain", 30, 21)), torch.from_numpy(floats(2, "plain", 30, 21))
    grads = []
    for pieces in (1, parts):
        weight = torch.from_numpy(floats(3, "plain", 21)).requires_grad_()
        for rows, grad in zip(x.chunk(pieces), g.chunk(pieces), strict=True):
            samebits.rms_norm(rows, weight, 1e-5).backward(grad)
        assert weight.grad is not None
        grads.append(weight.grad)
    assert_same_bits(*grads)
    total = torch.tensor(0.0)
    for rows, target in zip(x.chunk(parts), g.chunk(parts), strict=True):
        total = samebits.row_sum(samebits.sum(samebits.mse_loss(rows, target, "none"), 1), total)
    assert_same_bits(samebits.mul(total, 1 / 630), samebits.mse_loss(x, g))


def test_threads_change_nothing(shared_out: None) -> None:
    x, g = torch.from_numpy(floats(1, "plain", 100, 37)), torch.from_numpy(floats(2, "plain", 100, 37))

    def results() -> list[torch.Tensor]:
        a, w = x.clone().requires_grad_(), g[0].clone().requires_grad_()
        made = [samebits.rms_norm(a, w, 1e-5), samebits.log_softmax(a), samebits.softmax(a, 0)]
        loss = samebits.mse_loss(a, g)
        return [*made, loss, *torch.autograd.grad([*made, loss], (a, w), [g, g, g, torch.tensor(1.0)])]

    two = results()
    samebits.set_num_threads(1)
    for one, other in zip(results(), two, strict=True):
        assert_same_bits(one, other)


def test_bad_arguments() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(IndexError, match=r"^log_softmax: dim 2 is out of range for 2 axes"):
        samebits.log_softmax(x, 2)
    with pytest.raises(TypeError, match=r"^softmax: dim must be an int, not float"):
        samebits.softmax(x, 1.0)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match=r"^rms_norm: x \[2, 3\] and weight \[2\] do not fit"):
        samebits.rms_norm(x, torch.ones(2), 1e-5)
    with pytest.raises(ValueError, match=r"^rms_norm: eps must be finite and not negative"):
        samebits.rms_norm(x, torch.ones(3), -1.0)
    with pytest.raises(ValueError, match=r"^mse_loss: shapes differ: \[2, 3\] and \[3\]"):
        samebits.mse_loss(x, torch.ones(3))
    with pytest.raises(ValueError, match=r"^mse_loss: reduction must be one of"):
        samebits.mse_loss(x, x, "max")
    with pytest.raises(ValueError, match=r"^mse_loss: count must be a positive int"):
        samebits.mse_loss(x, x, count=0)
    made = (samebits.rms_norm(x, torch.ones(3), 1e-5), samebits.log_softmax(x), samebits.mse_loss(x, torch.ones(2, 3)))
    for y in made:
        with pytest.raises(RuntimeError, match="there is no second derivative"):
            torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
