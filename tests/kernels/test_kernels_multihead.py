"""Multi-head attention equals what it is composed of, and the plain loops, bit for bit; rotary too."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds, strided
from samebits.reference import rotary as reference

WIDTHS = st.sampled_from([2, 4, 10, 16, 18, 34])
FEW = settings(deadline=None, max_examples=25)


def composed(
    leaves: list[torch.Tensor], heads: int, groups: int, causal: bool, mask: torch.Tensor | None, base: float | None
) -> torch.Tensor:
    """multihead_attention of the public operators, whose equality with plain loops is tested elsewhere."""
    x, qkv_weight, qkv_bias, out_weight, out_bias = leaves
    batch, rows, f = x.shape
    width = f // heads
    qkv = samebits.linear(x, qkv_weight, qkv_bias).view(batch, rows, heads + 2 * groups, width).transpose(1, 2)
    q, k, v = qkv.split((heads, groups, groups), dim=1)
    if base is not None:
        q, k = samebits.rotary(q, base=base), samebits.rotary(k, base=base)
    mixed = samebits.attention(q, k, v, causal, mask).transpose(1, 2).reshape(batch, rows, f)
    return samebits.linear(mixed, out_weight, out_bias)


@given(
    st.integers(0, 2), st.sampled_from([0, 1, 9, 17]), st.integers(1, 2), st.integers(1, 3), WIDTHS, st.booleans(),
    st.booleans(), st.sampled_from([None, 10000.0, 500000.0]), seeds(), flavours(),
)  # fmt: skip
@FEW
def test_multihead_attention(
    batch: int, rows: int, groups: int, shared: int, width: int, causal: bool, masked: bool, base: float | None,
    seed: int, flavour: str,
) -> None:  # fmt: skip
    heads = groups * shared
    f, wide = heads * width, (heads + 2 * groups) * width
    shapes = [(batch, rows, f), (wide, f), (wide,), (f, f), (f,)]
    values = [floats(seed + i, flavour, *shape) for i, shape in enumerate(shapes)]
    mask = torch.from_numpy(floats(seed, "plain", batch, 1, 1, rows)) > -0.5 if masked else None
    grad = torch.from_numpy(floats(seed + 9, "plain", batch, rows, f))
    leaves, others = ([torch.from_numpy(value.copy()).requires_grad_() for value in values] for _ in range(2))
    x, qkv_weight, qkv_bias, out_weight, out_bias = leaves
    out = samebits.multihead_attention(
        x, qkv_weight, qkv_bias, out_weight, out_bias, heads, causal, mask, groups, base
    )  # fmt: skip
    wanted = composed(others, heads, groups, causal, mask, base)
    assert_same_bits(out, wanted)
    with torch.no_grad():
        plain = samebits.multihead_attention(
            x, qkv_weight, qkv_bias, out_weight, out_bias, heads, causal, mask, groups, base
        )
    assert_same_bits(plain, wanted)
    torch.autograd.backward((out, wanted), (grad, grad))
    for leaf, other in zip(leaves, others, strict=True):
        assert leaf.grad is not None
        assert other.grad is not None
        assert_same_bits(leaf.grad, other.grad)


@given(
    st.integers(0, 2), st.integers(1, 3), st.integers(0, 9), WIDTHS, st.integers(0, 2**31 - 20), st.booleans(),
    st.integers(0, 3), seeds(), flavours(),
)  # fmt: skip
@FEW
def test_rotary(
    batch: int, heads: int, rows: int, width: int, first: int, interleaved: bool, layout: int, seed: int, flavour: str
) -> None:
    x, g = floats(seed, flavour, batch, heads, rows, width), floats(seed + 1, "plain", batch, heads, rows, width)
    leaf, positions = strided(x, layout).requires_grad_(), [first + t for t in range(rows)]
    out = samebits.rotary(leaf, first, interleaved=interleaved)
    assert_same_bits(out, reference.rotary(x, positions, 10000.0, interleaved=interleaved))
    (grad,) = torch.autograd.grad(out, leaf, strided(g, layout))
    assert_same_bits(grad, reference.rotary(g, positions, 10000.0, interleaved=interleaved, back=True))
    assert_same_bits(samebits.rotary(leaf.detach(), torch.tensor(positions, dtype=torch.int64), 1e4, interleaved), out)


@pytest.mark.parametrize(("base", "width", "first"), [(10000.0, 64, 0), (1e30, 8, 250), (1.5, 6, 1 << 20)])
def test_angles_across_blocks(base: float, width: int, first: int) -> None:
    ones = np.zeros((1, 1, 20, width), np.float32)
    ones[..., : width // 2] = 1.0
    expected = reference.rotary(ones, [first + t for t in range(20)], base, interleaved=False)
    assert_same_bits(samebits.rotary(torch.from_numpy(ones), first, base), expected)


def test_every_row_of_a_batch_may_have_positions_of_its_own() -> None:
    x, positions = torch.from_numpy(floats(1, "plain", 2, 3, 4, 6)), torch.tensor([[0, 1, 300, 2], [7, 7, 0, 5000]])
    out = samebits.rotary(x, positions)
    for b in range(2):
        for t in range(4):
            alone = samebits.rotary(x[b : b + 1, :, t : t + 1], int(positions[b, t]))
            assert_same_bits(out[b : b + 1, :, t : t + 1], alone)


@pytest.mark.usefixtures("shared_out")
def test_two_threads_rotate_alike() -> None:
    x = torch.from_numpy(floats(1, "plain", 3, 5, 7, 8))
    two = samebits.rotary(x, 3)
    samebits.set_num_threads(1)
    assert_same_bits(samebits.rotary(x, 3), two)


def test_arguments_that_do_not_fit_are_refused_by_name() -> None:
    x, q = torch.zeros(2, 3, 4), torch.zeros(1, 2, 3, 4)
    w, b = torch.zeros(12, 4), torch.zeros(12)
    with pytest.raises(ValueError, match=r"^multihead_attention: 4 features cannot be cut into 3 heads"):
        samebits.multihead_attention(x, w, b, w[:4], b[:4], 3)
    with pytest.raises(ValueError, match=r"^multihead_attention: 4 heads cannot share 3 heads of keys"):
        samebits.multihead_attention(x, w, b, w[:4], b[:4], 4, num_kv_heads=3)
    with pytest.raises(ValueError, match=r"^multihead_attention: out_bias must be \[4\], not \[12\]"):
        samebits.multihead_attention(x, w, b, w[:4], b, 2)
    with pytest.raises(ValueError, match=r"^multihead_attention: x must be \[B, T, F\]"):
        samebits.multihead_attention(q, w, b, w[:4], b[:4], 2)
    with pytest.raises(ValueError, match=r"^rotary: x must be \[B, H, T, D\]"):
        samebits.rotary(x)
    with pytest.raises(ValueError, match=r"^rotary: the width 3 must be even"):
        samebits.rotary(q[..., :3])
    with pytest.raises(ValueError, match=r"^rotary: positions \[2\] must be \[3\] or \[1, 3\]"):
        samebits.rotary(q, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"^rotary: base must be finite and positive"):
        samebits.rotary(q, base=0.0)
    with pytest.raises(TypeError, match=r"^rotary: positions must be torch.int64"):
        samebits.rotary(q, torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(TypeError, match=r"^rotary: positions must be an int or a Tensor"):
        samebits.rotary(q, 1.0)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match=r"^rotary: positions must lie in 0\.\."):
        samebits.rotary(q, torch.tensor([0, -1, 3]))
    with pytest.raises(IndexError, match=r"^rotary: positions must lie in 0\.\."):
        samebits.rotary(q, 2**31 - 2)


def test_there_is_no_second_derivative() -> None:
    q = torch.ones(1, 1, 2, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^rotary: there is no second derivative"):
        torch.autograd.grad(samebits.rotary(q).sum(), q, create_graph=True)
