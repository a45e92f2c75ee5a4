"""conv2d equals its plain loops bit for bit, forward and all gradients, at any geometry."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import Floats, assert_same_bits, flavours, floats, seeds, strided
from samebits import _conv, _conv_kernel
from samebits.reference import images as reference

FEW = settings(deadline=None, max_examples=60)
QUIET = np.errstate(all="ignore")
Pair = tuple[int, int]


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def compare(
    x: Floats, w: Floats, b: Floats, g_seed: int, geometry: tuple[Pair, Pair, Pair, int], layout: int = 0
) -> None:
    """Forward, separate gradients, and gradients that continue .grad, against the loops."""
    tensor, weight, bias = (strided(value, layout).requires_grad_() for value in (x, w, b))
    y = samebits.conv2d(tensor, weight, bias, *geometry)
    assert_same_bits(y, reference.conv2d(x, w, b, *geometry))
    with torch.no_grad():
        assert_same_bits(samebits.conv2d(tensor, weight, None, *geometry), reference.conv2d(x, w, None, *geometry))
    g = floats(g_seed, "special", *y.shape)
    grads = torch.autograd.grad(y, (tensor, weight, bias), strided(g, layout), retain_graph=True)
    fresh = reference.conv2d_backward(x, w, g, np.zeros_like(w), np.zeros_like(b), *geometry)
    for fast, dumb in zip(grads, fresh, strict=True):
        assert_same_bits(fast, dumb)
    assert weight.grad is None
    weight.grad, bias.grad = torch.from_numpy(w.copy()), torch.from_numpy(b.copy())
    torch.autograd.backward(y, strided(g, layout), inputs=[weight, bias])
    _, dw, db = reference.conv2d_backward(x, w, g, w, b, *geometry)
    assert_same_bits(weight.grad, dw)
    assert_same_bits(bias.grad, db)


@given(
    st.integers(1, 2), st.integers(1, 2), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3, 9, 17]), pairs(1, 11),
    pairs(1, 3), pairs(1, 3), pairs(0, 3), pairs(1, 2), st.integers(0, 3), seeds(), flavours(),
)  # fmt: skip
@FEW
@QUIET
def test_conv2d(
    batch: int, groups: int, channels: int, outputs: int, plane: Pair, kernel: Pair, stride: Pair, padding: Pair,
    dilation: Pair, layout: int, seed: int, flavour: str,
) -> None:  # fmt: skip
    if min(reference.output_size(plane, kernel, stride, padding, dilation)) < 1:
        with pytest.raises(ValueError, match=r"^conv2d: the kernel of weight .* does not fit the padded x"):
            samebits.conv2d(torch.ones(batch, 1, *plane), torch.ones(1, 1, *kernel), None, stride, padding, dilation)
        return
    x, w = (
        floats(seed, flavour, batch, channels * groups, *plane),
        floats(seed + 1, flavour, outputs * groups, channels, *kernel),
    )
    b = floats(seed + 2, "special", outputs * groups)
    compare(x, w, b, seed + 3, (stride, padding, dilation, groups), layout)


# More places than a tile has lanes, more channels than it has rows, and more taps than a tile of the kernel gradient.
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("flavour", ["plain", "special"])
@QUIET
def test_larger_than_a_tile(padding: int, flavour: str) -> None:
    x, w, b = floats(1, flavour, 1, 2, 9, 17), floats(2, flavour, 19, 2, 5, 5), floats(3, flavour, 19)
    compare(x, w, b, 4, ((1, 1), (padding, padding), (1, 1), 1))


def test_a_padded_tap_is_absent() -> None:
    """With a zero in its stead, -0 would become +0, and an infinite weight NaN."""
    tiny = torch.full((1, 1, 1, 1), 2.0**-100)
    weight = torch.tensor([[[[-(2.0**-100), 1.0, torch.inf]]]])
    y = samebits.conv2d(tiny, weight, padding=(0, 2))
    np.testing.assert_array_equal(y.flatten().numpy(), np.array([np.inf, 2.0**-100, -0.0], np.float32))
    assert torch.signbit(y).flatten().tolist() == [False, False, True]


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_microbatches_are_the_whole_batch(parts: int) -> None:
    x, g = torch.from_numpy(floats(1, "plain", 6, 2, 7, 9)), torch.from_numpy(floats(2, "plain", 6, 5, 7, 9))
    grads = []
    for pieces in (1, parts):
        weight = torch.from_numpy(floats(3, "plain", 5, 2, 3, 3)).requires_grad_()
        bias = torch.zeros(5, requires_grad=True)
        for images, grad in zip(x.chunk(pieces), g.chunk(pieces), strict=True):
            samebits.conv2d(images, weight, bias, padding=1).backward(grad)
        grads.append((weight.grad, bias.grad))
    for one, other in zip(*grads, strict=True):
        assert one is not None
        assert other is not None
        assert_same_bits(one, other)


def test_threads_and_neighbours_change_nothing(shared_out: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_conv, _conv_kernel):
        monkeypatch.setattr(module, "WORTH_THREADS", 0)
    x, w = floats(1, "special", 5, 4, 13, 11), floats(2, "plain", 34, 2, 3, 3)
    g = torch.from_numpy(floats(3, "plain", 5, 34, 7, 6))

    def results(images: Floats, grad: torch.Tensor) -> list[torch.Tensor]:
        x, weight, bias = (
            torch.from_numpy(images).requires_grad_(),
            torch.from_numpy(w).requires_grad_(),
            torch.zeros(34),
        )
        y = samebits.conv2d(x, weight, bias.requires_grad_(), 2, 1, groups=2)
        return [y, *torch.autograd.grad(y, (x, weight, bias), grad)]

    two = results(x, g)
    samebits.set_num_threads(1)
    for one, other in zip(results(x, g), two, strict=True):
        assert_same_bits(one, other)
    alone = [results(x[i : i + 1], g[i : i + 1])[:2] for i in range(5)]
    for position in range(2):
        assert_same_bits(torch.cat([parts[position] for parts in alone]), two[position])


def test_a_bias_may_learn_alone() -> None:
    x, weight, bias = torch.ones(2, 1, 3, 3), torch.ones(2, 1, 2, 2), torch.zeros(2, requires_grad=True)
    samebits.conv2d(x, weight, bias).sum().backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [8.0, 8.0]


def test_no_images() -> None:
    x, weight = torch.ones(0, 2, 5, 5, requires_grad=True), torch.ones(3, 2, 3, 3, requires_grad=True)
    y = samebits.conv2d(x, weight)
    assert y.shape == (0, 3, 3, 3)
    grads = torch.autograd.grad(y, (x, weight), torch.ones(0, 3, 3, 3))
    assert grads[0].shape == x.shape
    assert not grads[1].any()


def test_bad_arguments() -> None:
    x, w = torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3)
    with pytest.raises(ValueError, match=r"^conv2d: x \[1, 2, 5\] and weight \[3, 2, 3, 3\] do not fit"):
        samebits.conv2d(x[:, :, 0], w)
    with pytest.raises(ValueError, match=r"^conv2d: x .* do not fit .* with groups 2"):
        samebits.conv2d(x, w, groups=2)
    with pytest.raises(ValueError, match=r"^conv2d: groups must be a positive int, not 0"):
        samebits.conv2d(x, w, groups=0)
    with pytest.raises(ValueError, match=r"^conv2d: bias \[2\] does not fit weight"):
        samebits.conv2d(x, w, torch.ones(2))
    with pytest.raises(ValueError, match=r"^conv2d: stride must be at least 1, not 0"):
        samebits.conv2d(x, w, stride=0)
    with pytest.raises(TypeError, match=r"^conv2d: padding must be an int or two of them, not 'same'"):
        samebits.conv2d(x, w, padding="same")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^conv2d: weight must be torch.float32, not torch.float64"):
        samebits.conv2d(x, w.double())
    with pytest.raises(RuntimeError, match=r"^conv2d: x must be a dense tensor on the CPU"):
        samebits.conv2d(x.to("meta"), w)
    y = samebits.conv2d(x, w.requires_grad_())
    with pytest.raises(RuntimeError, match=r"^conv2d: there is no second derivative"):
        torch.autograd.grad(y.sum(), w, create_graph=True)
