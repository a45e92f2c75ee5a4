"""batch_norm equals its plain loops bit for bit, in training and by its running statistics."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds, strided
from samebits.reference import images as reference
from samebits.reference.arrays import fma

FEW = settings(deadline=None, max_examples=40)
QUIET = np.errstate(all="ignore")
PLANES = st.sampled_from([(1, 1), (1, 2), (3, 5), (11, 13)])


@given(
    st.integers(0, 4), st.sampled_from([1, 3, 16, 19]), PLANES, st.booleans(), st.integers(0, 3), seeds(), flavours()
)
@FEW
@QUIET
def test_batch_norm(
    batch: int, channels: int, plane: tuple[int, int], training: bool, layout: int, seed: int, flavour: str
) -> None:
    x = floats(seed, flavour, batch, channels, *plane)
    if training and x.size <= channels:
        with pytest.raises(ValueError, match=r"^batch_norm: more than one value for each channel"):
            samebits.batch_norm(torch.from_numpy(x), None, None, torch.ones(channels), torch.ones(channels), True)
        return
    w, b, mean, var = (floats(seed + i, "plain", channels) for i in range(1, 5))
    var = np.abs(var)
    tensor, weight, bias = (strided(v, layout).requires_grad_() for v in (x, w, b))
    running = (torch.from_numpy(mean.copy()), torch.from_numpy(var.copy()))
    y = samebits.batch_norm(tensor, *running, weight, bias, training, 0.3, 1e-3)
    centre, scale = mean, (np.float32(1.0) / np.sqrt(var + np.float32(1e-3))).astype(np.float32)
    if training:
        centre, scale, squares = reference.batch_statistics(x, 1e-3)
        share = np.float32(1.0 / (x.size // channels - 1))
        moved = fma(np.full(channels, 0.3, np.float32), centre, mean * np.float32(1.0 - 0.3))
        assert_same_bits(running[0], moved)
        moved = fma(np.full(channels, 0.3, np.float32), squares * share, var * np.float32(1.0 - 0.3))
        assert_same_bits(running[1], moved)
    assert_same_bits(y, reference.batch_norm(x, centre, scale, w, b))
    g = floats(seed + 9, flavour, *x.shape)
    grads = torch.autograd.grad(y, (tensor, weight, bias), strided(g, layout), retain_graph=True)
    zeros = np.zeros(channels, np.float32)
    dumb = reference.batch_norm_backward(g, x, centre, scale, w, zeros, zeros, training)
    for fast, slow in zip(grads, dumb, strict=True):
        assert_same_bits(fast, slow)
    weight.grad, bias.grad = torch.from_numpy(w.copy()), torch.from_numpy(b.copy())
    torch.autograd.backward(y, strided(g, layout), inputs=[weight, bias])
    _, dw, db = reference.batch_norm_backward(g, x, centre, scale, w, w, b, training)
    assert_same_bits(weight.grad, dw)
    assert_same_bits(bias.grad, db)


@pytest.mark.parametrize("training", [True, False])
def test_vectors_are_images_of_one_place(training: bool) -> None:
    x, g = torch.from_numpy(floats(1, "special", 9, 5)), torch.from_numpy(floats(2, "plain", 9, 5))
    found = []
    for shape in ((9, 5), (9, 5, 1, 1)):
        tensor = x.view(shape).clone().requires_grad_()
        weight, bias = torch.full((5,), 0.3, requires_grad=True), torch.ones(5, requires_grad=True)
        running = (torch.zeros(5), torch.ones(5))
        y = samebits.batch_norm(tensor, *running, weight, bias, training)
        grads = torch.autograd.grad(y, (tensor, weight, bias), g.view(shape))
        found.append([y.reshape(9, 5), grads[0].reshape(9, 5), *grads[1:], *running])
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)


def test_threads_change_nothing(shared_out: None) -> None:
    x, g = torch.from_numpy(floats(1, "special", 3, 37, 9, 7)), torch.from_numpy(floats(2, "plain", 3, 37, 9, 7))

    def results() -> list[torch.Tensor]:
        tensor, weight, bias = x.clone().requires_grad_(), torch.ones(37, requires_grad=True), torch.zeros(37)
        y = samebits.batch_norm(tensor, None, None, weight, bias, True)
        return [y, *torch.autograd.grad(y, (tensor, weight), g)]

    two = results()
    samebits.set_num_threads(1)
    for one, other in zip(results(), two, strict=True):
        assert_same_bits(one, other)


def test_bad_arguments() -> None:
    x, c = torch.ones(2, 3), torch.ones(3)
    with pytest.raises(ValueError, match=r"^batch_norm: x must be \[B, C\] or \[B, C, H, W\], not \[2, 3, 1\]"):
        samebits.batch_norm(x[..., None], c, c, c, c, True)
    with pytest.raises(ValueError, match=r"^batch_norm: bias \[2\] does not fit x \[2, 3\]"):
        samebits.batch_norm(x, c, c, c, c[:2], True)
    with pytest.raises(TypeError, match=r"^batch_norm: running_mean must be a Tensor, not NoneType"):
        samebits.batch_norm(x, None, c, c, c, False)
    with pytest.raises(ValueError, match=r"^batch_norm: momentum must be finite and lie in 0..1, not 2"):
        samebits.batch_norm(x, c, c, c, c, True, momentum=2)
    with pytest.raises(ValueError, match=r"^batch_norm: running_var is changed in place and must be contiguous"):
        samebits.batch_norm(x, c, torch.ones(6)[::2], c, c, True)
