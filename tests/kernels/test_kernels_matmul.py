"""matmul and linear equal their plain loops bit for bit, whatever the shapes, strides, values, threads and company."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds, strided
from samebits import _product
from samebits.reference import arrays, scalar
from samebits.reference import matmul as reference

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "matmul.json").read_text())
SIZES = st.sampled_from([0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 61, 97])
LAYOUTS = st.integers(0, 3)
FEW = settings(deadline=None, max_examples=60)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_product, "WORTH_THREADS", 0)
    samebits.set_num_threads(2)
    yield
    samebits.set_num_threads(1)


def tensors(*values: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(value.copy()) for value in values]


@given(seeds(), flavours(), flavours(), flavours())
@settings(deadline=None, max_examples=30)
def test_the_array_fma_is_the_correctly_rounded_one(seed: int, one: str, two: str, three: str) -> None:
    a, b, c = floats(seed, one, 40), floats(seed + 1, two, 40), floats(seed + 2, three, 40)
    with np.errstate(all="ignore"):
        c[::4] = -(a * b)[::4]  # massive cancellation
    expected = np.array([scalar.fma(x, y, z) for x, y, z in zip(a, b, c, strict=True)])
    assert_same_bits(torch.from_numpy(arrays.fma(a, b, c)), expected)


def test_the_array_fma_survives_double_rounding() -> None:
    a = np.float32(1 + 2.0**-23)
    for tail in (2.0**-60, -(2.0**-60), 2.0**-100):
        for head in (2.0**24, 2.0**23, 1.0):
            x, y, z = a * np.float32(head), a, np.float32(tail)
            assert arrays.fma(*(np.array([value]) for value in (x, y, z)))[0] == scalar.fma(x, y, z)


@pytest.mark.parametrize("case", ORACLE["cases"], ids=lambda case: str(case["seed"]))
def test_an_independent_library_has_the_same_digest(case: dict[str, Any]) -> None:
    rng = np.random.Generator(np.random.PCG64(case["seed"]))
    a = rng.standard_normal((case["m"], case["k"])).astype(np.float32)
    b = rng.standard_normal((case["k"], case["n"])).astype(np.float32)
    if case["scaled"]:
        a, b = a * np.float32(1e-22), b * np.float32(1e-20)
    out = samebits.matmul(torch.from_numpy(a), torch.from_numpy(b))
    assert hashlib.sha256(out.numpy().tobytes()).hexdigest() == case["sha256"]


@given(SIZES, SIZES, SIZES, LAYOUTS, LAYOUTS, seeds(), flavours())
@FEW
def test_matmul(m: int, k: int, n: int, layout_a: int, layout_b: int, seed: int, flavour: str) -> None:
    a, b, g = floats(seed, flavour, m, k), floats(seed + 1, flavour, k, n), floats(seed + 2, flavour, m, n)
    fast_a, fast_b = strided(a, layout_a).requires_grad_(), strided(b, layout_b).requires_grad_()
    out = samebits.matmul(fast_a, fast_b)
    assert_same_bits(out, reference.matmul(a, b))
    torch.autograd.backward(out, strided(g, layout_a))
    grad_a, grad_b = reference.matmul_backward(a, b, g)
    assert fast_a.grad is not None
    assert fast_b.grad is not None
    assert_same_bits(fast_a.grad, grad_a)
    assert_same_bits(fast_b.grad, grad_b)


@pytest.mark.parametrize(("m", "k", "n"), [(3, 1025, 5), (131, 513, 3), (2, 40, 1601), (97, 300, 101), (33, 257, 48)])
def test_matmul_larger_than_every_block(m: int, k: int, n: int) -> None:
    a, b = floats(m, "plain", m, k), floats(n, "plain", k, n)
    expected = reference.matmul(a, b)
    for layout_a in (0, 1):
        for layout_b in (0, 1):
            assert_same_bits(samebits.matmul(strided(a, layout_a), strided(b, layout_b)), expected)


@given(st.lists(st.integers(0, 3), max_size=2), SIZES, SIZES, SIZES, st.booleans(), seeds(), flavours())
@settings(deadline=None, max_examples=30)
def test_matmul_of_batches(batch: list[int], m: int, k: int, n: int, shared: bool, seed: int, flavour: str) -> None:
    a, g = floats(seed, flavour, *batch, m, k), floats(seed + 2, flavour, *batch, m, n)
    b = floats(seed + 1, flavour, *([] if shared else batch), k, n)
    fast_a, fast_b = (tensor.requires_grad_() for tensor in tensors(a, b))
    out = samebits.matmul(fast_a, fast_b)
    assert_same_bits(out, reference.matmul(a, b))
    grads = torch.autograd.grad(out, (fast_a, fast_b), torch.from_numpy(g))
    for fast, dumb in zip(grads, reference.matmul_backward(a, b, g), strict=True):
        assert_same_bits(fast, dumb)


@given(SIZES, SIZES, SIZES, st.booleans(), LAYOUTS, LAYOUTS, seeds(), flavours())
@FEW
def test_linear(
    rows: int, inner: int, outer: int, has_bias: bool, layout_x: int, layout_w: int, seed: int, flavour: str
) -> None:
    x, w = floats(seed, flavour, rows, inner), floats(seed + 1, flavour, outer, inner)
    bias, g = floats(seed + 2, flavour, outer), floats(seed + 3, flavour, rows, outer)
    fast_x, fast_w = strided(x, layout_x).requires_grad_(), strided(w, layout_w).requires_grad_()
    fast_bias = strided(bias, layout_w).requires_grad_() if has_bias else None
    out = samebits.linear(fast_x, fast_w, fast_bias)
    assert_same_bits(out, reference.linear(x, w, bias if has_bias else None))
    torch.autograd.backward(out, torch.from_numpy(g))
    leaves = [fast_x, fast_w, fast_bias]
    for leaf, dumb in zip(leaves, reference.linear_backward(x, w, g), strict=True):
        if leaf is not None:
            assert leaf.grad is not None
            assert_same_bits(leaf.grad, dumb)


@given(st.integers(1, 60), SIZES.filter(bool), SIZES.filter(bool), seeds(), st.data())
@FEW
def test_two_threads_change_no_bit(m: int, k: int, n: int, seed: int, data: st.DataObject) -> None:
    batch = data.draw(st.sampled_from([(), (1,), (2,), (5,)]))
    a, b = floats(seed, "plain", *batch, m, k), floats(seed + 1, "plain", *batch, k, n)
    bias, w = floats(seed + 2, "plain", n), floats(seed + 3, "plain", n, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_product, "WORTH_THREADS", 0)
        samebits.set_num_threads(2)
        try:
            two = [samebits.matmul(*tensors(a, b)), samebits.linear(*tensors(a, w, bias))]
        finally:
            samebits.set_num_threads(1)
    one = [samebits.matmul(*tensors(a, b)), samebits.linear(*tensors(a, w, bias))]
    for left, right in zip(one, two, strict=True):
        assert_same_bits(left, right)


@given(st.integers(1, 70), SIZES, SIZES, seeds(), flavours(), st.data())
@FEW
def test_a_row_alone_equals_the_row_in_company(
    rows: int, inner: int, outer: int, seed: int, flavour: str, data: st.DataObject
) -> None:
    x, w, bias = tensors(
        floats(seed, flavour, rows, inner), floats(seed + 1, flavour, outer, inner), floats(seed + 2, flavour, outer)
    )
    row = data.draw(st.integers(0, rows - 1))
    assert_same_bits(samebits.linear(x[row], w, bias), samebits.linear(x, w, bias)[row])


@given(st.integers(1, 40), SIZES, SIZES, seeds(), flavours(), st.data())
@FEW
def test_microbatches_in_order_equal_the_whole_batch(
    rows: int, inner: int, outer: int, seed: int, flavour: str, data: st.DataObject
) -> None:
    x, w = floats(seed, flavour, rows, inner), floats(seed + 1, flavour, outer, inner)
    bias, g = floats(seed + 2, flavour, outer), floats(seed + 3, flavour, rows, outer)
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    _, whole_w, whole_bias = reference.linear_backward(x, w, g)
    weight, addend = (tensor.requires_grad_() for tensor in tensors(w, bias))
    for begin, end in zip([0, *cuts], [*cuts, rows], strict=True):
        part, grad = tensors(x[begin:end], g[begin:end])
        torch.autograd.backward(samebits.linear(part, weight, addend), grad)
    assert weight.grad is not None
    assert addend.grad is not None
    assert_same_bits(weight.grad, whole_w)
    assert_same_bits(addend.grad, whole_bias)


def test_threads_take_part_in_backward(two_threads: None) -> None:
    x, w, bias, g = (floats(i, "plain", *shape) for i, shape in enumerate([(200, 70), (90, 70), (90,), (200, 90)]))
    leaves = [tensor.requires_grad_() for tensor in tensors(x, w, bias)]
    torch.autograd.backward(samebits.linear(*leaves), torch.from_numpy(g))
    for leaf, dumb in zip(leaves, reference.linear_backward(x, w, g), strict=True):
        assert leaf.grad is not None
        assert_same_bits(leaf.grad, dumb)


def test_arguments_that_do_not_fit_are_refused_by_name() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"^matmul: shapes \[2, 3\] and \[2, 3\]"):
        samebits.matmul(x, x)
    with pytest.raises(ValueError, match=r"^matmul: "):
        samebits.matmul(torch.zeros(4, 2, 3), torch.zeros(3, 3, 2))
    with pytest.raises(ValueError, match=r"^matmul: "):
        samebits.matmul(torch.zeros(3), torch.zeros(3))
    with pytest.raises(TypeError, match=r"^matmul: b must be torch.float32, not torch.float64"):
        samebits.matmul(x, torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"^matmul: a must be a Tensor, not list"):
        samebits.matmul([[1.0]], x)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"^linear: x must be a dense tensor on the CPU, not meta"):
        samebits.linear(torch.zeros(2, 3, device="meta"), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"^linear: bias \[3\] does not fit weight \[4, 3\]"):
        samebits.linear(x, torch.zeros(4, 3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"^linear: "):
        samebits.linear(x, torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"^linear: "):
        samebits.linear(torch.tensor(1.0), torch.zeros(4, 2))


def test_a_saved_tensor_changed_in_place_is_noticed() -> None:
    x, w = torch.ones(2, 3), torch.ones(4, 3, requires_grad=True)
    out = samebits.linear(x, w)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(out.sum())


def test_there_is_no_second_derivative() -> None:
    x, w = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^linear: there is no second derivative"):
        torch.autograd.grad(samebits.linear(x, w).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^matmul: there is no second derivative"):
        torch.autograd.grad(samebits.matmul(x, w.mT).sum(), x, create_graph=True)
