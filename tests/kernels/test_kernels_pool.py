"""max_pool2d and avg_pool2d equal their plain loops bit for bit, and a small network trains as the loops do."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernels_bits import Floats, assert_same_bits, flavours, floats, seeds, strided
from samebits.reference import images as reference

FEW = settings(deadline=None, max_examples=60)
QUIET = np.errstate(all="ignore")
Pair = tuple[int, int]
PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(
    st.integers(0, 2), st.integers(1, 3), st.tuples(st.integers(1, 13), st.integers(1, 13)), PAIRS, PAIRS,
    st.tuples(st.integers(0, 2), st.integers(0, 2)), st.integers(0, 3), seeds(), flavours(),
)  # fmt: skip
@FEW
@QUIET
def test_pooling(
    batch: int,
    channels: int,
    plane: Pair,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    layout: int,
    seed: int,
    flavour: str,
) -> None:
    assume(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
    assume(min(reference.output_size(plane, kernel, stride, padding, (1, 1))) > 0)
    x = floats(seed, flavour, batch, channels, *plane)
    tensor = strided(x, layout).requires_grad_()
    largest, mean = (
        samebits.max_pool2d(tensor, kernel, stride, padding),
        samebits.avg_pool2d(tensor, kernel, stride, padding),
    )
    dumb, winners = reference.max_pool2d(x, kernel, stride, padding)
    assert_same_bits(largest, dumb)
    assert_same_bits(mean, reference.avg_pool2d(x, kernel, stride, padding))
    g = floats(seed + 1, "special", *dumb.shape)
    (grad,) = torch.autograd.grad(largest, tensor, strided(g, layout))
    assert_same_bits(grad, reference.max_pool2d_backward(g, winners, x.shape))
    (grad,) = torch.autograd.grad(mean, tensor, strided(g, layout))
    assert_same_bits(grad, reference.avg_pool2d_backward(g, x.shape, kernel, stride, padding))


def test_the_first_of_equals_wins_and_stride_is_the_kernel_by_default() -> None:
    x = torch.tensor([[[[0.0, -0.0, 2.0, 2.0], [1.0, 1.0, torch.nan, 3.0]]]], requires_grad=True)
    y = samebits.max_pool2d(x, 2)
    assert y[0, 0, 0, 0] == 1.0
    assert torch.isnan(y[0, 0, 0, 1])
    y.backward(torch.tensor([[[[5.0, 7.0]]]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[[[0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 7.0, 0.0]]]]
    assert samebits.avg_pool2d(x.detach(), 2).shape == (1, 1, 1, 2)


def test_threads_change_nothing(shared_out: None) -> None:
    x, g = torch.from_numpy(floats(1, "special", 3, 5, 9, 7)), torch.from_numpy(floats(2, "plain", 3, 5, 5, 4))

    def results() -> list[torch.Tensor]:
        found = []
        for pool in (samebits.max_pool2d, samebits.avg_pool2d):
            tensor = x.clone().requires_grad_()
            y = pool(tensor, 3, 2, 1)
            found += [y, *torch.autograd.grad(y, tensor, g)]
        return found

    two = results()
    samebits.set_num_threads(1)
    for one, other in zip(results(), two, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_bad_arguments(name: str) -> None:
    pool, x = getattr(samebits, name), torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match=rf"^{name}: x must be \[B, C, H, W\], not \[1, 4, 4\]"):
        pool(x[0], 2)
    with pytest.raises(ValueError, match=rf"^{name}: padding 2 is more than half of kernel_size 3"):
        pool(x, 3, padding=2)
    with pytest.raises(ValueError, match=rf"^{name}: kernel_size 5 does not fit the padded x"):
        pool(x, 5)
    with pytest.raises(TypeError, match=rf"^{name}: kernel_size must be an int or two of them, not 2.0"):
        pool(x, 2.0)
    with pytest.raises(TypeError, match=rf"^{name}: x must be torch.float32, not torch.int64"):
        pool(x.long(), 2)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match=rf"^{name}: there is no second derivative"):
        torch.autograd.grad(pool(x, 2).sum(), x, create_graph=True)


def small_images() -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """A few images [4, 1, 10, 10] in 0..1 as bytes give them, dark at the edges, and their classes."""
    rng = np.random.Generator(np.random.PCG64(1))
    pixels = np.zeros((4, 1, 10, 10), np.uint8)
    pixels[:, :, 2:8, 2:8] = rng.integers(0, 256, (4, 1, 6, 6))
    return pixels.astype(np.float32) / np.float32(255.0), np.array([0, 2, 1, 2])
