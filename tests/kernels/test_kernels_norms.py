"""softmax, layer_norm, mean_pool and position_embedding equal their plain loops bit for bit, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds, strided
from samebits.reference import rows as reference

ROWS = st.sampled_from([0, 1, 2, 15, 16, 17, 31, 33])
COLUMNS = st.sampled_from([0, 1, 2, 3, 7, 9, 15, 16, 17, 31, 33, 61])
LAYOUTS = st.integers(0, 3)
EPS = st.sampled_from([1e-5, 0.0, 1e-12, 0.5])
FEW = settings(deadline=None, max_examples=60)
QUIET = np.errstate(all="ignore")


@given(ROWS, COLUMNS, LAYOUTS, seeds(), flavours())
@FEW
@QUIET
def test_softmax(rows: int, columns: int, layout: int, seed: int, flavour: str) -> None:
    x, g = floats(seed, flavour, rows, columns), floats(seed + 1, "special", rows, columns)
    tensor = strided(x, layout).requires_grad_()
    y = samebits.softmax(tensor)
    assert_same_bits(y, reference.softmax(x))
    assert_same_bits(samebits.softmax(tensor.detach()), reference.softmax(x))
    (grad,) = torch.autograd.grad(y, tensor, strided(g, layout))
    assert_same_bits(grad, reference.softmax_backward(g, x))
    assert tensor.grad is None


@pytest.mark.parametrize("columns", [64, 127, 511, 512, 513, 1031])
@QUIET
def test_long_rows(columns: int) -> None:
    x, g = floats(1, "plain", 3, columns), floats(2, "plain", 3, columns)
    w, b = floats(3, "plain", columns), floats(4, "plain", columns)
    tensor = torch.from_numpy(x).requires_grad_()
    y = samebits.softmax(tensor)
    assert_same_bits(y, reference.softmax(x))
    (grad,) = torch.autograd.grad(y, tensor, torch.from_numpy(g))
    assert_same_bits(grad, reference.softmax_backward(g, x))
    assert_same_bits(
        samebits.layer_norm(tensor, torch.from_numpy(w), torch.from_numpy(b), 1e-5), reference.layer_norm(x, w, b, 1e-5)
    )


def test_softmax_is_free_of_the_other_axes() -> None:
    x = torch.from_numpy(floats(1, "special", 2, 3, 5, 7))
    whole = samebits.softmax(x)
    for index in np.ndindex(2, 3, 5):
        assert_same_bits(samebits.softmax(x[index]), whole[index])
    assert samebits.softmax(torch.empty(0, 3)).shape == (0, 3)
    assert samebits.softmax(torch.empty(3, 0)).shape == (3, 0)


@given(ROWS, COLUMNS, LAYOUTS, EPS, seeds(), flavours())
@FEW
@QUIET
def test_layer_norm(rows: int, columns: int, layout: int, eps: float, seed: int, flavour: str) -> None:
    x, g = floats(seed, flavour, rows, columns), floats(seed + 1, flavour, rows, columns)
    w, b = floats(seed + 2, flavour, columns), floats(seed + 3, "plain", columns)
    tensor, weight, bias = (strided(value, layout).requires_grad_() for value in (x, w, b))
    y = samebits.layer_norm(tensor, weight, bias, eps)
    assert_same_bits(y, reference.layer_norm(x, w, b, eps))
    grads = torch.autograd.grad(y, (tensor, weight, bias), strided(g, layout), retain_graph=True)
    zeros = np.zeros(columns, np.float32)
    for fast, dumb in zip(grads, reference.layer_norm_backward(g, x, w, eps, zeros, zeros), strict=True):
        assert_same_bits(fast, dumb)
    assert weight.grad is None
    torch.autograd.backward(y, strided(g, layout), inputs=[weight, bias])
    start = reference.layer_norm_backward(g, x, w, eps, zeros, zeros)
    y = samebits.layer_norm(tensor.detach(), weight, bias, eps)
    y.backward(strided(g, layout))
    _, dw, db = reference.layer_norm_backward(g, x, w, eps, *start[1:])
    assert weight.grad is not None
    assert bias.grad is not None
    assert_same_bits(weight.grad, dw)
    assert_same_bits(bias.grad, db)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_layer_norm_microbatches_are_the_whole_batch(parts: int) -> None:
    x, g = torch.from_numpy(floats(1, "plain", 30, 21)), torch.from_numpy(floats(2, "plain", 30, 21))
    grads = []
    for pieces in (1, parts):
        weight, bias = (torch.from_numpy(floats(s, "plain", 21)).requires_grad_() for s in (3, 4))
        for rows, grad in zip(x.chunk(pieces), g.chunk(pieces), strict=True):
            samebits.layer_norm(rows, weight, bias, 1e-5).backward(grad)
        grads.append((weight.grad, bias.grad))
    for one, other in zip(*grads, strict=True):
        assert one is not None
        assert other is not None
        assert_same_bits(one, other)


def test_threads_and_neighbours_change_nothing(shared_out: None) -> None:
    x, g = torch.from_numpy(floats(1, "plain", 100, 37)), torch.from_numpy(floats(2, "plain", 100, 37))
    w, b = (torch.from_numpy(floats(s, "plain", 37)) for s in (3, 4))

    def results(rows: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
        x, weight, bias = (t.clone().requires_grad_() for t in (rows, w, b))
        y, z = samebits.layer_norm(x, weight, bias, 1e-5), samebits.softmax(x)
        return [y, z, *torch.autograd.grad((y, z), (x, weight, bias), (grad, grad))]

    two = results(x, g)
    samebits.set_num_threads(1)
    for one, other in zip(results(x, g), two, strict=True):
        assert_same_bits(one, other)
    alone = [results(x[i : i + 1], g[i : i + 1])[:3] for i in range(100)]
    for position in range(3):
        assert_same_bits(torch.cat([parts[position] for parts in alone]), two[position])


@given(st.integers(0, 4), st.integers(0, 5), st.sampled_from([0, 1, 3, 16, 19]), LAYOUTS, seeds(), flavours())
@FEW
@QUIET
def test_mean_pool(batch: int, positions: int, features: int, layout: int, seed: int, flavour: str) -> None:
    x, g = floats(seed, flavour, batch, positions, features), floats(seed + 1, flavour, batch, features)
    tensor = strided(x, layout).requires_grad_()
    y = samebits.mean_pool(tensor)
    assert_same_bits(y, reference.mean_pool(x))
    (grad,) = torch.autograd.grad(y, tensor, strided(g, layout))
    assert_same_bits(grad, reference.mean_pool_backward(g, positions))


@given(st.integers(0, 4), st.integers(0, 5), st.sampled_from([0, 1, 3, 16, 19]), LAYOUTS, seeds(), flavours())
@FEW
@QUIET
def test_position_embedding(batch: int, positions: int, features: int, layout: int, seed: int, flavour: str) -> None:
    x, g = (floats(seed + i, flavour, batch, positions, features) for i in range(2))
    w, start = (floats(seed + i, flavour, positions, features) for i in (2, 3))
    tensor, weight = strided(x, layout).requires_grad_(), strided(w, layout).requires_grad_()
    y = samebits.position_embedding(tensor, weight)
    assert_same_bits(y, reference.position_embedding(x, w))
    grad_x, grad_w = torch.autograd.grad(y, (tensor, weight), strided(g, layout), retain_graph=True)
    assert_same_bits(grad_x, g)
    assert_same_bits(grad_w, reference.position_embedding_backward(g, np.zeros_like(w)))
    weight.grad = strided(start, 0)
    torch.autograd.backward(y, strided(g, layout), inputs=[weight])
    assert_same_bits(weight.grad, reference.position_embedding_backward(g, start))


def test_bad_arguments() -> None:
    x, w = torch.ones(2, 3), torch.ones(3)
    with pytest.raises(ValueError, match=r"^layer_norm: x \[2, 3\], weight \[2\]"):
        samebits.layer_norm(x, torch.ones(2), w, 1e-5)
    for eps in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^layer_norm: eps must be finite and not negative"):
            samebits.layer_norm(x, w, w, eps)
    with pytest.raises(TypeError, match=r"^layer_norm: bias must be torch.float32, not torch.bfloat16"):
        samebits.layer_norm(x, w, w.bfloat16(), 1e-5)
    with pytest.raises(ValueError, match=r"^softmax: x must have at least one axis"):
        samebits.softmax(torch.tensor(1.0))
    with pytest.raises(RuntimeError, match=r"^softmax: x must be a dense tensor on the CPU"):
        samebits.softmax(x.to("meta"))
    with pytest.raises(ValueError, match=r"^mean_pool: x must be \[B, T, F\], not \[2, 3\]"):
        samebits.mean_pool(x)
    with pytest.raises(ValueError, match=r"^position_embedding: x \[2, 3\] and weight \[3\] do not fit"):
        samebits.position_embedding(x, w)
