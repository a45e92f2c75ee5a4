"""attention, multi-head attention and fork equal their plain loops bit for bit, forward and backward."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import Floats, assert_same_bits, flavours, floats, seeds, strided
from samebits.reference import attention as reference
from samebits.reference import matmul as reference_matmul
from samebits.reference.fork import fork_backward

LENGTHS = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 19])
WIDTHS = st.sampled_from([1, 2, 5, 8, 16, 17])
FEW = settings(deadline=None, max_examples=40)


def expected_gradients(q: Floats, k: Floats, v: Floats, g: Floats, causal: bool) -> list[Floats]:
    grads = [np.empty(operand.shape, np.float32) for operand in (q, k, v)]
    for i in np.ndindex(q.shape[:2]):
        head = reference.attention_backward(q[i], k[i], v[i], g[i], causal)
        for whole, part in zip(grads, head, strict=True):
            whole[i] = part
    return grads


def expected_output(q: Floats, k: Floats, v: Floats, causal: bool) -> Floats:
    out = np.empty(q.shape, np.float32)
    for i in np.ndindex(q.shape[:2]):
        out[i] = reference.attention(q[i], k[i], v[i], causal)
    return out


def check(q: Floats, k: Floats, v: Floats, g: Floats, causal: bool, layout: int = 0) -> None:
    leaves = [strided(operand, layout).requires_grad_() for operand in (q, k, v)]
    out = samebits.attention(leaves[0], leaves[1], leaves[2], causal)
    assert_same_bits(out, expected_output(q, k, v, causal))
    with torch.no_grad():
        assert_same_bits(samebits.attention(leaves[0], leaves[1], leaves[2], causal), out)
    grads = torch.autograd.grad(out, leaves, strided(g, layout))
    for fast, dumb in zip(grads, expected_gradients(q, k, v, g, causal), strict=True):
        assert_same_bits(fast, dumb)


@given(st.integers(0, 2), st.integers(1, 2), LENGTHS, LENGTHS, WIDTHS, st.booleans(), seeds(), flavours())
@FEW
def test_attention(
    batch: int, heads: int, rows: int, keys: int, width: int, causal: bool, seed: int, flavour: str
) -> None:
    keys = rows if causal else keys
    q, g = floats(seed, flavour, batch, heads, rows, width), floats(seed + 3, "plain", batch, heads, rows, width)
    k, v = (floats(seed + i, flavour, batch, heads, keys, width) for i in (1, 2))
    check(q, k, v, g, causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", [1, 2, 3])
def test_attention_of_strided_operands(causal: bool, layout: int) -> None:
    q, k, v, g = (floats(i, "plain", 2, 2, 9, 8) for i in range(4))
    check(q, k, v, g, causal, layout)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_longer_than_every_block(causal: bool) -> None:
    q, k, v, g = (floats(i, "plain", 1, 1, 83, 12) for i in range(4))
    check(q, k, v, g, causal)


@pytest.mark.parametrize("causal", [False, True])
def test_two_threads_change_no_bit(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["samebits.attention"], "WORTH_A_SHARE", 0)  # the name is the function
    q, k, v, g = (torch.from_numpy(floats(i, "plain", 3, 5, 9, 8)).requires_grad_() for i in range(4))

    def all_of_it() -> list[torch.Tensor]:
        out = samebits.attention(q, k, v, causal)
        return [out, *torch.autograd.grad(out, (q, k, v), g)]

    one = all_of_it()
    samebits.set_num_threads(2)
    try:
        two = all_of_it()
    finally:
        samebits.set_num_threads(1)
    for left, right in zip(one, two, strict=True):
        assert_same_bits(left, right)


def test_a_causal_row_does_not_see_what_comes_after() -> None:
    q, k, v = (torch.from_numpy(floats(i, "plain", 1, 2, 20, 8)) for i in range(3))
    whole = samebits.attention(q, k, v, True)
    k[:, :, 11:], v[:, :, 11:] = float("nan"), float("inf")
    assert_same_bits(samebits.attention(q, k, v, True)[:, :, :11], whole[:, :, :11])


def test_a_row_without_keys_gives_plus_zero() -> None:
    q, k = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 0, 4)
    out = samebits.attention(q, k, k)
    assert_same_bits(out, np.zeros((1, 2, 3, 4), np.float32))


@given(st.integers(0, 2), st.sampled_from([0, 1, 9]), st.integers(1, 3), WIDTHS, st.booleans(), seeds(), flavours())
@settings(deadline=None, max_examples=25)
def test_multihead_attention(
    batch: int, rows: int, heads: int, width: int, causal: bool, seed: int, flavour: str
) -> None:
    f = heads * width
    shapes = [(batch, rows, f), (3 * f, f), (3 * f,), (f, f), (f,)]
    values = [floats(seed + i, flavour, *shape) for i, shape in enumerate(shapes)]
    leaves = [torch.from_numpy(value.copy()).requires_grad_() for value in values]
    x, qkv_weight, qkv_bias, out_weight, out_bias = leaves
    out = samebits.multihead_attention(x, qkv_weight, qkv_bias, out_weight, out_bias, heads, causal)
    grad = floats(seed + 9, "plain", batch, rows, f)
    torch.autograd.backward(out, torch.from_numpy(grad))
    expected = _multihead(values, heads, causal, grad)
    assert_same_bits(out, expected[0])
    for leaf, dumb in zip(leaves, expected[1:], strict=True):
        assert leaf.grad is not None
        assert_same_bits(leaf.grad, dumb)


def _multihead(values: Sequence[Floats], heads: int, causal: bool, grad: Floats) -> list[Floats]:
    """The output and the five gradients, composed of the references of linear and attention."""
    x, qkv_weight, qkv_bias, out_weight, out_bias = values
    batch, rows, f = x.shape

    def split(flat: Floats) -> list[Floats]:
        parts = flat.reshape(batch, rows, 3, heads, f // heads).transpose(2, 0, 3, 1, 4)
        return [np.ascontiguousarray(part) for part in parts]

    def joined(by_heads: Floats) -> Floats:
        return by_heads.transpose(0, 2, 1, 3).reshape(batch * rows, f)

    flat_x, flat_grad = x.reshape(batch * rows, f), grad.reshape(batch * rows, f)
    q, k, v = split(reference_matmul.linear(flat_x, qkv_weight, qkv_bias))
    mixed = joined(expected_output(q, k, v, causal))
    out = reference_matmul.linear(mixed, out_weight, out_bias)
    grad_mixed, grad_out_weight, grad_out_bias = reference_matmul.linear_backward(mixed, out_weight, flat_grad)
    grad_heads = grad_mixed.reshape(batch, rows, heads, f // heads).transpose(0, 2, 1, 3)
    grads = expected_gradients(q, k, v, np.ascontiguousarray(grad_heads), causal)
    grad_qkv = np.concatenate([joined(part) for part in grads], axis=1)
    grad_x, grad_qkv_weight, grad_qkv_bias = reference_matmul.linear_backward(flat_x, qkv_weight, grad_qkv)
    made = [out.reshape(x.shape), grad_x.reshape(x.shape)]
    return [*made, grad_qkv_weight, grad_qkv_bias, grad_out_weight, grad_out_bias]


@given(st.integers(1, 4), st.lists(st.integers(0, 5), max_size=3), seeds(), flavours())
@FEW
def test_fork_sums_its_consumers_in_order(n: int, shape: list[int], seed: int, flavour: str) -> None:
    x = torch.from_numpy(floats(seed, flavour, *shape)).requires_grad_()
    grads = [floats(seed + 1 + i, flavour, *shape) for i in range(n)]
    consumers = samebits.fork(x, n)
    for consumer in consumers:
        assert_same_bits(consumer, x)
    (grad,) = torch.autograd.grad(consumers, x, [torch.from_numpy(g) for g in grads])
    assert_same_bits(grad, fork_backward(grads))


def test_a_consumer_without_a_gradient_is_absent() -> None:
    x = torch.tensor([-0.0, 1.0], requires_grad=True)
    one, _, three = samebits.fork(x, 3)
    (grad,) = torch.autograd.grad(one.sum() + 2 * three.sum(), x)
    assert_same_bits(grad, np.array([3.0, 3.0], np.float32))


def test_arguments_that_do_not_fit_are_refused_by_name() -> None:
    q, x = torch.zeros(1, 2, 3, 4), torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"^attention: q \[2, 3, 4\]"):
        samebits.attention(x, x, x)
    with pytest.raises(ValueError, match=r"^attention: "):
        samebits.attention(q, q[:, :, :2], q[:, :, :2], causal=True)
    with pytest.raises(ValueError, match=r"^attention: "):
        samebits.attention(q[..., :0], q[..., :0], q[..., :0])
    with pytest.raises(TypeError, match=r"^attention: v must be torch.float32"):
        samebits.attention(q, q, q.double())
    w, b = torch.zeros(12, 4), torch.zeros(12)
    with pytest.raises(ValueError, match=r"^multihead_attention: 4 features cannot be cut into 3 heads"):
        samebits.multihead_attention(x, w, b, w[:4], b[:4], 3)
    with pytest.raises(ValueError, match=r"^multihead_attention: out_bias must be \[4\], not \[12\]"):
        samebits.multihead_attention(x, w, b, w[:4], b, 2)
    with pytest.raises(ValueError, match=r"^multihead_attention: x must be \[B, T, F\]"):
        samebits.multihead_attention(q, w, b, w[:4], b[:4], 2)
    with pytest.raises(TypeError, match=r"^fork: n must be an int"):
        samebits.fork(x, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^fork: n must be at least 1"):
        samebits.fork(x, 0)


def test_there_is_no_second_derivative() -> None:
    q = torch.ones(1, 1, 2, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^attention: there is no second derivative"):
        torch.autograd.grad(samebits.attention(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^fork: there is no second derivative"):
        torch.autograd.grad(samebits.fork(q, 2)[0].sum(), q, create_graph=True)
