"""bfloat16 storage: the casts equal their plain loops, and how operators take bfloat16 tensors, and refuse them."""

from __future__ import annotations

import weakref
from fractions import Fraction

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import SPECIAL, Floats, flavours, floats, seeds, strided
from numpy.typing import NDArray
from samebits import _storage
from samebits.bfloat16 import widen
from samebits.reference import bfloat16 as reference

EVERY = np.arange(2**16, dtype=np.uint16)
SHAPES = st.sampled_from([(), (0,), (1,), (3, 0), (17,), (5, 13), (67,), (2, 131)])
FEW = settings(deadline=None, max_examples=60)
Words = NDArray[np.uint16]


def words(x: torch.Tensor) -> Words:
    """The bits of a bfloat16 tensor."""
    return np.asarray(x.detach().contiguous().view(torch.int16).numpy()).view(np.uint16)


def narrow(bits: Words) -> torch.Tensor:
    """The bfloat16 tensor of these bits."""
    return torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)


def test_every_bfloat16_is_widened_exactly() -> None:
    wide = samebits.to_float32(narrow(EVERY)).numpy()
    expected = np.array([reference.widen(int(word)) for word in EVERY])
    np.testing.assert_array_equal(wide.view(np.uint32), expected.view(np.uint32))
    finite = np.isfinite(wide)
    np.testing.assert_array_equal(words(samebits.to_bfloat16(torch.from_numpy(wide)))[finite], EVERY[finite])


def test_ties_and_their_neighbours_of_every_bfloat16() -> None:
    for low in (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = ((EVERY.astype(np.uint32) << 16) | np.uint32(low)).view(np.float32)
        np.testing.assert_array_equal(words(samebits.to_bfloat16(torch.from_numpy(x))), reference.rounded(x))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=300)
def test_the_plain_loop_takes_the_nearest_number(bits: int) -> None:
    x = np.uint32(bits).view(np.float32)
    if not np.isfinite(x):
        assert reference.nearest(x) == (0x7FC0 if np.isnan(x) else bits >> 16)
        return
    word = bits >> 16
    below, above = (_value(candidate) for candidate in (word, word + 1))
    true = abs(Fraction(float(x)))
    nearer = word if true - below < above - true else word + 1
    assert reference.nearest(x) == (word + word % 2 if true - below == above - true else nearer)


def _value(word: int) -> Fraction:
    """The size of a bfloat16; infinity stands where the next number would."""
    exponent, fraction = (word >> 7) & 0xFF, word & 0x7F
    mantissa = fraction + (128 if exponent else 0)
    return mantissa * Fraction(2) ** (max(exponent, 1) - 127 - 7)


@given(
    st.sampled_from([(), (0,), (1,), (3, 0), (17,), (5, 13), (67,), (2, 131)]), st.integers(0, 3), seeds(), flavours()
)
@FEW
def test_casts_and_their_gradients(shape: tuple[int, ...], layout: int, seed: int, flavour: str) -> None:
    x, g = floats(seed, flavour, *shape), floats(seed + 1, flavour, *shape)
    leaf, grad = strided(x, layout).requires_grad_(), samebits.to_bfloat16(strided(g, layout))
    down = samebits.to_bfloat16(leaf)
    np.testing.assert_array_equal(words(down), reference.rounded(x))
    (back,) = torch.autograd.grad(down, leaf, grad)
    np.testing.assert_array_equal(back.numpy(), samebits.to_float32(grad).numpy())
    stored = down.detach().requires_grad_()
    (back,) = torch.autograd.grad(samebits.to_float32(stored), stored, strided(g, layout))
    np.testing.assert_array_equal(words(back), reference.rounded(g))


def test_threads_change_nothing(shared_out: None) -> None:
    x = torch.from_numpy(floats(1, "special", 1031))
    np.testing.assert_array_equal(words(samebits.to_bfloat16(x)), reference.rounded(x.numpy()))
    stored = samebits.to_bfloat16(x)
    np.testing.assert_array_equal(samebits.to_float32(stored).numpy(), stored.float().numpy())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_binary32_is_rounded_to_the_nearest() -> None:
    """Where torch's cast is a number, ours is the same one; where it is NaN, ours is 0x7fc0."""
    for start in range(0, 2**32, 2**24):
        x = torch.from_numpy(np.arange(start, start + 2**24, dtype=np.uint32).view(np.float32))
        wanted = np.where(np.isnan(x.numpy()), np.uint16(0x7FC0), words(x.bfloat16()))
        assert np.array_equal(words(samebits.to_bfloat16(x)), wanted), hex(start)


def test_a_cast_to_what_it_is_gives_the_same_tensor() -> None:
    x = torch.ones(2)
    assert samebits.to_float32(x) is x
    assert samebits.to_bfloat16(y := x.bfloat16()) is y


def test_what_the_casts_refuse() -> None:
    for cast in (samebits.to_bfloat16, samebits.to_float32):
        name = cast.__name__
        with pytest.raises(TypeError, match=rf"^{name}: x must be torch.float32, not torch.float64"):
            cast(torch.ones(2, dtype=torch.float64))
        with pytest.raises(TypeError, match=rf"^{name}: x must be a Tensor, not list"):
            cast([1.0])  # type: ignore[arg-type]
        for dtype in (torch.float32, torch.bfloat16):
            with pytest.raises(RuntimeError, match=rf"^{name}: x must be a dense tensor on the CPU"):
                cast(torch.ones(2, device="meta", dtype=dtype))
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^to_bfloat16: there is no second derivative"):
        torch.autograd.grad(samebits.to_bfloat16(x).float().sum(), x, create_graph=True)


def leaves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, w, b = (torch.from_numpy(floats(i, "plain", *shape)) for i, shape in enumerate([(9, 5), (7, 5), (7,)]))
    return samebits.to_bfloat16(x).requires_grad_(), w.requires_grad_(), b.requires_grad_()


def test_dtypes_that_do_not_go_together_are_refused_by_name() -> None:
    x, w, b = leaves()
    with pytest.raises(TypeError, match=r"^matmul: b must be torch.bfloat16, not torch.float32"):
        samebits.matmul(x, w.mT)
    with pytest.raises(TypeError, match=r"^add: a must be torch.bfloat16, not torch.float32"):
        samebits.add(w, torch.ones(7, 5).bfloat16())
    with pytest.raises(TypeError, match=r"^linear: weight must be torch.float32, not torch.bfloat16"):
        samebits.linear(x.float(), w.bfloat16(), b)
    with pytest.raises(TypeError, match=r"^linear: weight must be torch.float32, not torch.float64"):
        samebits.linear(x, w.double(), b)
    with pytest.raises(TypeError, match=r"^row_sum: values must be torch.float32, not torch.bfloat16"):
        samebits.row_sum(x[0], 0.0)
    with pytest.raises(RuntimeError, match=r"^linear: x must be a dense tensor on the CPU, not meta"):
        samebits.linear(x.to("meta"), w)


def test_float32_parameters_continue_their_chains_over_microbatches() -> None:
    grads = []
    for parts in (1, 3):
        x, w, b = leaves()
        for rows in x.detach().chunk(parts):
            y = samebits.linear(rows, w, b)
            torch.autograd.backward(y, torch.ones_like(y))
        assert w.grad is not None
        assert b.grad is not None
        assert w.grad.dtype == b.grad.dtype == torch.float32
        grads.append(samebits.digest({"w": w.grad, "b": b.grad}))
    assert grads[0] == grads[1]


def test_a_bfloat16_leaf_sums_rounded_gradients() -> None:
    x, w, _ = leaves()
    narrow_w = samebits.to_bfloat16(w.detach()).requires_grad_()
    parts = [torch.autograd.grad(samebits.linear(rows, narrow_w).sum(), narrow_w)[0] for rows in x.detach().chunk(3)]
    for rows in x.detach().chunk(3):
        torch.autograd.backward(samebits.linear(rows, narrow_w).sum())
    assert narrow_w.grad is not None
    total: Floats = np.zeros((7, 5), np.float32)
    for part in parts:
        total = np.array([reference.widen(int(i)) for i in reference.rounded(total + part.float().numpy()).flat])
        total = total.reshape(7, 5)
    np.testing.assert_array_equal(narrow_w.grad.float().numpy(), total)


def test_what_backward_needs_is_kept_as_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.UntypedStorage]] = []

    def watched(x: torch.Tensor, operator: str) -> torch.Tensor:
        wide = widen(x, operator)
        made.append(weakref.ref(wide.untyped_storage()))
        return wide

    monkeypatch.setattr(_storage, "widen", watched)
    x, w, _ = leaves()
    y = samebits.linear(x, w)
    assert y.requires_grad
    assert [storage() for storage in made] == [None]


@pytest.mark.parametrize("changed", [0, 1])
def test_a_change_in_place_is_noticed(changed: int) -> None:
    tensors = leaves()
    y = samebits.linear(*tensors)
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match=r"^linear: a tensor .* has been modified by an inplace operation"):
        torch.autograd.backward(y, torch.ones_like(y))


def test_losses_stay_float32() -> None:
    logits = torch.ones(2, 3).bfloat16().requires_grad_()
    loss = samebits.cross_entropy(logits, torch.tensor([0, 1]))
    assert loss.dtype is torch.float32
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.dtype is torch.bfloat16


def test_special_numbers_survive() -> None:
    x = samebits.to_bfloat16(torch.from_numpy(SPECIAL))
    doubled = words(samebits.add(x, x))
    assert doubled[1] == 0x8000  # -0
    assert doubled[6] == 0x7FC0  # NaN
    assert words(samebits.to_bfloat16(torch.tensor([2.0**-133, -(2.0**-133)]))).tolist() == [0x0001, 0x8001]
    assert words(samebits.to_bfloat16(torch.tensor([3.4028235e38, 3.3895314e38]))).tolist() == [0x7F80, 0x7F7F]
