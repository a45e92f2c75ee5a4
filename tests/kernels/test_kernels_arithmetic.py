"""add, mul, div, sum and mean equal their plain loops bit for bit, broadcast or not, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import Floats, assert_same_bits, flavours, floats, seeds, strided
from samebits.reference import reductions as reference

Shape = tuple[int, ...]
OPERATORS: dict[str, tuple[Any, Callable[[Floats, Floats], Floats]]] = {
    "add": (samebits.add, np.add),
    "mul": (samebits.mul, np.multiply),
    "div": (samebits.div, np.divide),
}
NAMES, LAYOUTS = st.sampled_from(sorted(OPERATORS)), st.integers(0, 3)
PAIRS: list[tuple[Shape, Shape]] = [
    ((), ()), ((7,), ()), ((), (3, 5)), ((1,), (9,)), ((2, 3, 5), (5,)), ((5,), (2, 3, 5)), ((4, 1), (4, 17)),
    ((4, 17), (4, 1)), ((3, 1, 5), (1, 4, 1)), ((2, 3, 4, 5), (3, 1, 5)), ((33, 1), (1, 35)), ((0, 3), (3,)),
    ((3, 0), (3, 1)), ((1, 1), (1, 1)), ((1, 6), (1, 6)), ((2, 131), (131,)), ((19, 5, 2), (5, 1)), ((3, 1), (1, 3, 7)),
    ((8191,), (1,)), ((1, 3), (1, 1, 3)), ((5, 13), (5, 13)), ((0,), (0,)),
]  # fmt: skip
FEW = settings(deadline=None, max_examples=150)
QUIET = np.errstate(all="ignore")


def gradients(name: str, a: Floats, b: Floats, g: Floats, starts: tuple[Floats | None, Floats | None]) -> list[Floats]:
    """Both gradients by the plain loops. A leaf of the result's shape whose every axis is long has no chain."""
    factors: dict[str, tuple[Floats | None, Floats | None]] = {"add": (None, None), "mul": (b, a)}
    if name == "div":
        g, factors["div"] = np.asarray(g / b), (None, np.asarray(-(a / b)))
    return [
        reference.broadcast_backward(g, factor, mine.shape, start)
        for mine, factor, start in zip((a, b), factors[name], starts, strict=True)
    ]


@given(NAMES, st.sampled_from(PAIRS), LAYOUTS, LAYOUTS, seeds(), flavours())
@FEW
@QUIET
def test_broadcast(name: str, pair: tuple[Shape, Shape], layout_a: int, layout_b: int, seed: int, flavour: str) -> None:
    fast, dumb = OPERATORS[name]
    a, b = floats(seed, flavour, *pair[0]), floats(seed + 1, flavour, *pair[1])
    expected = np.asarray(dumb(a, b), np.float32)
    g = floats(seed + 2, flavour, *expected.shape)
    left, right = strided(a, layout_a).requires_grad_(), strided(b, layout_b).requires_grad_()
    y = fast(left, right)
    assert_same_bits(y, expected)
    assert_same_bits(fast(left.detach(), right.detach()), expected)
    once = gradients(name, a, b, g, (None, None))
    grads = torch.autograd.grad(y, (left, right), strided(g, layout_a), retain_graph=True)
    for fast_grad, dumb_grad in zip(grads, once, strict=True):
        assert_same_bits(fast_grad, dumb_grad)
    y.backward(strided(g, layout_b), retain_graph=True)
    y.backward(strided(g, 0))
    twice = gradients(name, a, b, g, (once[0], once[1]))
    for leaf, first, chained in zip((left, right), once, twice, strict=True):
        assert leaf.grad is not None
        broadcast = leaf.shape != y.shape or 1 in leaf.shape
        assert_same_bits(leaf.grad, chained if broadcast else first + first)


@pytest.mark.parametrize("name", sorted(OPERATORS))
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (3, 1), ()])
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_microbatches_are_the_whole_batch(name: str, shape: Shape, parts: int) -> None:
    fast, grads = OPERATORS[name][0], list[torch.Tensor]()
    x, g = (torch.from_numpy(floats(seed, "plain", 6, 3, 5)) for seed in (1, 2))
    for pieces in (1, parts):
        weight = torch.from_numpy(floats(3, "plain", *shape)).requires_grad_()
        for rows, grad in zip(x.chunk(pieces), g.chunk(pieces), strict=True):
            fast(rows, weight).backward(grad)
        assert weight.grad is not None
        grads.append(weight.grad)
    assert_same_bits(grads[0], grads[1])


def test_a_leaf_with_a_batch_axis_meets_one_row_or_many() -> None:
    x, g = torch.from_numpy(floats(1, "plain", 4, 9)), torch.from_numpy(floats(2, "plain", 4, 9))
    for fast, _ in OPERATORS.values():
        whole, cut = (torch.from_numpy(floats(3, "plain", 1, 9)).requires_grad_() for _ in range(2))
        fast(x, whole).backward(g)
        for i in range(4):
            fast(x[i : i + 1], cut).backward(g[i : i + 1])
        assert whole.grad is not None
        assert cut.grad is not None
        assert_same_bits(cut.grad, whole.grad)


def test_same_shapes_keep_the_zeros_sign() -> None:
    x = torch.ones(1, 3, requires_grad=True) * 1.0
    (grad,) = torch.autograd.grad(samebits.add(x, torch.ones(1, 3)), x, torch.full((1, 3), -0.0))
    assert_same_bits(grad, torch.full((1, 3), -0.0))


@given(NAMES, st.floats(allow_nan=False), seeds(), flavours())
@settings(deadline=None, max_examples=40)
@QUIET
def test_a_number_is_rounded_once(name: str, number: float, seed: int, flavour: str) -> None:
    fast, dumb = OPERATORS[name]
    x = floats(seed, flavour, 3, 7)
    tensor, scalar = torch.from_numpy(x).requires_grad_(), np.float32(number)
    y = fast(tensor, number)
    assert_same_bits(y, np.asarray(dumb(x, np.full_like(x, scalar))))
    (grad,) = torch.autograd.grad(y, tensor, torch.from_numpy(x))
    assert_same_bits(grad, x if name == "add" else np.asarray(dumb(x, np.full_like(x, scalar))))


AXES: list[tuple[Shape, Any]] = [
    ((), None), ((), 0), ((7,), None), ((7,), 0), ((0,), None), ((3, 0), 1), ((3, 0), 0), ((17, 33), 1), ((17, 33), 0),
    ((5, 3, 35), (0, 2)), ((5, 3, 35), (-1, 0)), ((5, 3, 35), 1), ((5, 3, 35), ()), ((2, 1, 4), 1), ((2, 1031), None),
    ((33, 1, 2), [2, 1]), ((4, 5, 1), -1),
]  # fmt: skip


@given(st.sampled_from(["sum", "mean"]), st.sampled_from(AXES), st.booleans(), LAYOUTS, seeds(), flavours())
@FEW
@QUIET
def test_reductions(name: str, case: tuple[Shape, Any], keep: bool, layout: int, seed: int, flavour: str) -> None:
    shape, dim = case
    x = floats(seed, flavour, *shape)
    named = [dim] if isinstance(dim, int) else list(dim or range(len(shape)))
    axes = sorted({axis % len(shape) for axis in named}) if shape else []
    expected = (reference.sums if name == "sum" else reference.means)(x, axes)
    final = expected.shape if keep else tuple(n for i, n in enumerate(shape) if i not in axes)
    tensor = strided(x, layout).requires_grad_()
    y = getattr(samebits, name)(tensor, dim, keep)
    assert_same_bits(y, expected.reshape(final))
    assert_same_bits(getattr(samebits, name)(tensor.detach(), dim, keepdim=keep), expected.reshape(final))
    assert tuple(getattr(torch, name)(tensor, dim=dim, keepdim=keep).shape) == final
    g = floats(seed + 1, flavour, *final)
    (grad,) = torch.autograd.grad(y, tensor, torch.from_numpy(g))
    count = int(np.prod([shape[axis] for axis in axes]))
    factor = np.float32(1.0) if name == "sum" or not count else np.float32(1.0 / count)
    scaled = g.reshape(expected.shape) * factor
    assert_same_bits(grad, np.broadcast_to(scaled, shape) if x.size else np.empty(shape, np.float32))


def test_threads_change_nothing(shared_out: None) -> None:
    x, w = torch.from_numpy(floats(1, "plain", 37, 5, 70)), torch.from_numpy(floats(2, "plain", 5, 1))

    def results() -> list[torch.Tensor]:
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        y, z = samebits.mul(a, b), samebits.add(a, b)
        grads = torch.autograd.grad((y, z, samebits.div(a, b)), (a, b), (x, x, x))
        return [y, z, *grads, samebits.sum(x), samebits.sum(x, 0), samebits.mean(x, -1), samebits.mul(x, 3.0)]

    two = results()
    samebits.set_num_threads(1)
    for one, other in zip(results(), two, strict=True):
        assert_same_bits(one, other)


def test_bad_arguments() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"^add: shapes \[2, 3\] and \[2\] cannot be broadcast together"):
        samebits.add(x, torch.ones(2))
    with pytest.raises(TypeError, match=r"^mul: b must be torch.float32, not torch.int64"):
        samebits.mul(x, torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^mul: b must be a Tensor or a number, not bool"):
        samebits.mul(x, True)
    with pytest.raises(TypeError, match=r"^add: a must be a Tensor, not float"):
        samebits.add(1.0, x)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(IndexError, match=r"^sum: dim 2 is out of range for 2 axes"):
        samebits.sum(x, 2)
    with pytest.raises(ValueError, match=r"^mean: an axis appears twice in dim"):
        samebits.mean(x, (0, -2))
    with pytest.raises(TypeError, match=r"^sum: dim must be ints, not float"):
        samebits.sum(x, (0.5,))  # type: ignore[arg-type]  # that is the point
    for operator in (samebits.sum, samebits.mean, lambda t: samebits.mul(t, t), lambda t: samebits.div(t, 3.0)):
        with pytest.raises(RuntimeError, match="there is no second derivative"):
            torch.autograd.grad(operator(x).sum(), x, create_graph=True)
