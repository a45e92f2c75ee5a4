"""relu, gelu, silu and the elementary functions equal their plain loops bit for bit, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds, strided
from samebits.reference import elementary, elementwise
from samebits.reference.elementwise import each

UNARY: dict[str, tuple[Any, Callable[..., Any], Callable[..., Any]]] = {
    "relu": (samebits.relu, elementwise.relu, elementwise.relu_backward),
    "gelu": (samebits.gelu, elementwise.gelu, elementwise.gelu_backward),
    "silu": (samebits.silu, elementwise.silu, elementwise.silu_backward),
    "sigmoid": (samebits.sigmoid, elementary.sigmoid, elementwise.sigmoid_backward),
    "sqrt": (samebits.sqrt, elementary.sqrt, elementwise.sqrt_backward),
    "exp": (samebits.exp, elementary.exp, elementwise.exp_backward),
    "log": (samebits.log, elementary.log, elementwise.log_backward),
    "erf": (samebits.erf, elementary.erf, elementwise.erf_backward),
    "tanh": (samebits.tanh, elementary.tanh, elementwise.tanh_backward),
    "rsqrt": (samebits.rsqrt, elementary.rsqrt, elementwise.rsqrt_backward),
    "sin": (samebits.sin, elementary.sin, elementwise.sin_backward),
    "cos": (samebits.cos, elementary.cos, elementwise.cos_backward),
}
SHAPES = st.sampled_from([(0,), (), (1,), (7,), (3, 0, 2), (17,), (5, 13), (2, 3, 11), (67,), (2, 131)])
NAMES = st.sampled_from(sorted(UNARY))
FEW = settings(deadline=None, max_examples=120)


@given(NAMES, SHAPES, st.integers(0, 3), seeds(), flavours())
@FEW
def test_unary(name: str, shape: tuple[int, ...], layout: int, seed: int, flavour: str) -> None:
    fast, dumb, dumb_backward = UNARY[name]
    x, g = floats(seed, flavour, *shape), floats(seed + 1, flavour, *shape)
    tensor = strided(x, layout).requires_grad_()
    y = fast(tensor)
    assert_same_bits(y, each(dumb, x))
    assert_same_bits(fast(tensor.detach()), each(dumb, x))
    (grad,) = torch.autograd.grad(y, tensor, strided(g, layout))
    assert tensor.grad is None
    assert_same_bits(grad, each(dumb_backward, g, x))


@given(NAMES, st.integers(0, 2**32 - 1), st.integers(1, 300))
@FEW
def test_any_bits(name: str, seed: int, size: int) -> None:
    fast, dumb, dumb_backward = UNARY[name]
    rng = np.random.Generator(np.random.PCG64(seed))
    x = rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    y = fast(tensor)
    assert_same_bits(y, each(dumb, x))
    (grad,) = torch.autograd.grad(y, tensor, torch.ones(size))
    assert_same_bits(grad, each(dumb_backward, np.ones(size, np.float32), x))


@pytest.mark.parametrize("name", sorted(UNARY))
def test_threads_and_neighbours_change_nothing(name: str, shared_out: None) -> None:
    fast = UNARY[name][0]
    x = torch.from_numpy(floats(5, "special", 1031))
    whole = fast(x)
    samebits.set_num_threads(1)
    assert_same_bits(fast(x), whole)
    assert_same_bits(torch.cat([fast(part) for part in x.split(7)]), whole)


def test_relu_by_the_contract() -> None:
    x = torch.tensor([-0.0, 0.0, -1.0, 2.0, torch.nan, -torch.inf, torch.inf]).requires_grad_()
    y = samebits.relu(x)
    assert_same_bits(y, torch.tensor([0.0, 0.0, 0.0, 2.0, torch.nan, 0.0, torch.inf]))
    (grad,) = torch.autograd.grad(y, x, torch.full((7,), -3.0))
    assert_same_bits(grad, torch.tensor([0.0, 0.0, 0.0, -3.0, -3.0, 0.0, -3.0]))


def test_second_derivatives_are_refused() -> None:
    x, g = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^gelu: there is no second derivative"):
        torch.autograd.grad(samebits.gelu(x), x, g, create_graph=True)


@pytest.mark.parametrize("name", sorted(UNARY))
def test_bad_arguments(name: str) -> None:
    fast = UNARY[name][0]
    with pytest.raises(TypeError, match=rf"^{name}: x must be torch.float32, not torch.float64"):
        fast(torch.ones(2, dtype=torch.float64))
    with pytest.raises(TypeError, match=rf"^{name}: x must be a Tensor, not list"):
        fast([1.0])
    with pytest.raises(RuntimeError, match=rf"^{name}: x must be a dense tensor on the CPU"):
        fast(torch.ones(2, device="meta"))
