"""attention and fork equal their plain loops bit for bit, forward and backward."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import Floats, assert_same_bits, flavours, floats, seeds, strided
from numpy.typing import NDArray
from samebits.reference import attention as reference
from samebits.reference.fork import fork_backward

Seen = NDArray[np.bool_]
Four = tuple[Floats, Floats, Floats, Floats]
LENGTHS = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 19])
WIDTHS = st.sampled_from([1, 2, 5, 8, 16, 17])
FEW = settings(deadline=None, max_examples=40)


def expected(q: Floats, k: Floats, v: Floats, g: Floats, seen: Seen) -> list[Floats]:
    """The output and the gradients of q, k and v; seen is [batch, heads, rows, keys]."""
    made = [np.zeros(operand.shape, np.float32) for operand in (q, q, k, v)]
    shared = q.shape[1] // max(1, k.shape[1])
    for b, h in np.ndindex(q.shape[:2]):
        i, j = (b, h), (b, h // shared)
        made[0][i] = reference.attention(q[i], k[j], v[j], seen[i])
        made[1][i] = reference.attention_backward(q[i], k[j], v[j], g[i], seen[i], made[2][j], made[3][j])
    return made


def check(
    q: Floats, k: Floats, v: Floats, g: Floats, causal: bool, layout: int = 0, mask: NDArray[np.bool_] | None = None
) -> None:  # fmt: skip
    leaves = [strided(operand, layout).requires_grad_() for operand in (q, k, v)]
    given_mask = None if mask is None else torch.from_numpy(mask)
    out = samebits.attention(leaves[0], leaves[1], leaves[2], causal, given_mask)
    seen = np.broadcast_to(reference.seen_by(q.shape[2], k.shape[2], causal), (*q.shape[:3], k.shape[2]))
    dumb = expected(q, k, v, g, seen if mask is None else seen & mask)
    assert_same_bits(out, dumb[0])
    with torch.no_grad():
        assert_same_bits(samebits.attention(leaves[0], leaves[1], leaves[2], causal, given_mask), out)
    grads = torch.autograd.grad(out, leaves, strided(g, layout))
    for fast, slow in zip(grads, dumb[1:], strict=True):
        assert_same_bits(fast, slow)


def operands(seed: int, flavour: str, batch: int, heads: int, shared: int, rows: int, keys: int, width: int) -> Four:
    """q, k, v and the output's gradient; `shared` query heads to a head of keys."""
    q, g = (floats(seed + i, kind, batch, heads, rows, width) for i, kind in ((0, flavour), (3, "plain")))
    k, v = (floats(seed + i, flavour, batch, heads // shared, keys, width) for i in (1, 2))
    return q, k, v, g


@given(
    st.integers(0, 2), st.integers(1, 2), st.integers(1, 3), LENGTHS, LENGTHS, WIDTHS, st.booleans(), seeds(),
    flavours(),
)  # fmt: skip
@FEW
def test_attention(
    batch: int, groups: int, shared: int, rows: int, keys: int, width: int, causal: bool, seed: int, flavour: str
) -> None:
    check(*operands(seed, flavour, batch, groups * shared, shared, rows, keys, width), causal)


@given(
    st.integers(1, 2), st.integers(1, 3), LENGTHS, LENGTHS, WIDTHS, st.booleans(), st.integers(0, 15),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]), seeds(), flavours(),
)  # fmt: skip
@FEW
def test_masked_attention(
    groups: int, shared: int, rows: int, keys: int, width: int, causal: bool, axes: int, kept: float, seed: int,
    flavour: str,
) -> None:  # fmt: skip
    whole = (2, groups * shared, rows, keys)
    shape = tuple(size if axes >> i & 1 else 1 for i, size in enumerate(whole))
    mask = np.random.Generator(np.random.PCG64(seed)).random(shape) < kept
    check(*operands(seed, flavour, 2, groups * shared, shared, rows, keys, width), causal, mask=mask)


def test_what_a_mask_hides_changes_nothing() -> None:
    q, k, v, g = (torch.from_numpy(x).requires_grad_() for x in operands(1, "plain", 1, 2, 1, 5, 20, 8))
    mask = torch.ones(1, 1, 1, 20, dtype=torch.bool)
    mask[..., 4:7] = False
    kept = mask.flatten()
    few_k, few_v = k.detach()[:, :, kept].requires_grad_(), v.detach()[:, :, kept].requires_grad_()
    few = samebits.attention(q, few_k, few_v)
    hidden_k, hidden_v = k.detach().clone(), v.detach().clone()
    hidden_k[:, :, ~kept], hidden_v[:, :, ~kept] = float("nan"), float("inf")
    hidden_k.requires_grad_(), hidden_v.requires_grad_()
    out = samebits.attention(q, hidden_k, hidden_v, mask=mask)
    assert_same_bits(out, few)
    made, wanted = torch.autograd.grad(out, (q, hidden_k), g), torch.autograd.grad(few, (q, few_k), g)
    assert_same_bits(made[0], wanted[0])
    assert_same_bits(made[1][:, :, kept], wanted[1])
    assert_same_bits(made[1][:, :, ~kept], np.zeros((1, 2, 3, 8), np.float32))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", [1, 2, 3])
def test_attention_of_strided_operands(causal: bool, layout: int) -> None:
    q, k, v, g = (floats(i, "plain", 2, 2, 9, 8) for i in range(4))
    check(q, k, v, g, causal, layout)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_longer_than_every_block(causal: bool) -> None:
    q, k, v, g = (floats(i, "plain", 1, 1, 83, 12) for i in range(4))
    check(q, k, v, g, causal)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_two_threads_change_no_bit(causal: bool, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["samebits.attention"], "WORTH_A_SHARE", 0)  # the name is the function
    q, k, v, g = (torch.from_numpy(x).requires_grad_() for x in operands(0, "plain", 3, 6, 2, 9, 9, 8))
    mask = torch.from_numpy(floats(9, "plain", 3, 1, 9, 9) > 0) if masked else None

    def all_of_it() -> list[torch.Tensor]:
        out = samebits.attention(q, k, v, causal, mask)
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
    with pytest.raises(ValueError, match=r"^attention: q .* H a multiple of G"):
        samebits.attention(q[:, :1], q, q)
    with pytest.raises(ValueError, match=r"^attention: mask \[1, 1, 2, 3\] does not fit \[1, 2, 3, 3\]"):
        samebits.attention(q, q, q, mask=torch.ones(1, 1, 2, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"^attention: mask must be torch.bool"):
        samebits.attention(q, q, q, mask=torch.ones(1, 1, 1, 3))
    with pytest.raises(ValueError, match=r"^attention: "):
        samebits.attention(q[..., :0], q[..., :0], q[..., :0])
    with pytest.raises(TypeError, match=r"^attention: v must be torch.float32"):
        samebits.attention(q, q, q.double())
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
