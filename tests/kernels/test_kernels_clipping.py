"""Clipping equals its plain loop bit for bit, in one process or in two halves, and is the same algorithm as torch's."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import Floats, assert_same_bits, flavours, floats, seeds
from samebits.optim import clip_grad_norm_, clip_grads_with_norm_, square_sums, total_norm
from samebits.reference import optim as reference

SHAPES = st.lists(st.sampled_from([(), (0,), (1,), (7,), (3, 11), (2, 3, 5), (67,)]), max_size=5)


def parameters(gradients: list[Floats]) -> list[torch.Tensor]:
    made = []
    for gradient in gradients:
        p = torch.zeros(gradient.shape, requires_grad=True)
        p.grad = torch.from_numpy(gradient.copy())
        made.append(p)
    return made


def grad(p: torch.Tensor) -> torch.Tensor:
    assert p.grad is not None
    return p.grad


@given(SHAPES, st.sampled_from([0.0, 1e-30, 0.5, 1.0, 1e30, np.inf]), seeds(), flavours())
@settings(deadline=None, max_examples=80)
def test_clipping_in_one_piece_and_in_two(
    shapes: list[tuple[int, ...]], max_norm: float, seed: int, flavour: str
) -> None:
    gradients = [floats(seed + i, flavour, *shape) for i, shape in enumerate(shapes)]
    with np.errstate(all="ignore"):
        norm, expected = reference.norm(gradients), reference.clipped(gradients, max_norm)
    whole, cut = parameters(gradients), parameters(gradients)
    assert_same_bits(clip_grad_norm_(whole, max_norm), np.asarray(norm))
    parts = [cut[: len(cut) // 2], cut[len(cut) // 2 :]]
    both = total_norm(torch.cat([square_sums(part) for part in parts]))
    for part in parts:
        clip_grads_with_norm_(part, max_norm, both)
    for p, q, wanted in zip(whole, cut, expected, strict=True):
        assert_same_bits(grad(p), wanted)
        assert_same_bits(grad(q), wanted)


def test_threads_change_nothing(shared_out: None) -> None:
    gradients = [floats(i, "plain", 1031) for i in range(5)]
    shared, alone = parameters(gradients), parameters(gradients)
    clip_grad_norm_(shared, 0.5)
    samebits.set_num_threads(1)
    clip_grad_norm_(alone, 0.5)
    for p, q in zip(shared, alone, strict=True):
        assert_same_bits(grad(p), grad(q))


def test_it_is_the_same_algorithm_as_torch_s() -> None:
    gradients = [floats(i, "plain", 9, 7) for i in range(4)]
    for max_norm in (0.1, 5.0, 1e6):
        ours, exact = parameters(gradients), [torch.zeros(9, 7, dtype=torch.float64) for _ in gradients]
        for p, gradient in zip(exact, gradients, strict=True):
            p.grad = torch.from_numpy(gradient).double()
        norm = clip_grad_norm_(ours, max_norm)
        torch.testing.assert_close(norm.double(), torch.nn.utils.clip_grad_norm_(exact, max_norm), rtol=1e-6, atol=0)
        for p, q in zip(ours, exact, strict=True):
            torch.testing.assert_close(grad(p).double(), grad(q), rtol=1e-6, atol=0)


def test_strided_gradients_missing_ones_and_a_single_parameter() -> None:
    gradient = floats(1, "plain", 3, 5)
    (plain,), strided, without = parameters([gradient]), torch.zeros(5, 3).T.requires_grad_(), torch.zeros(2)
    strided.grad = torch.from_numpy(gradient.T.copy()).T
    assert not strided.grad.is_contiguous()
    kept = strided.grad
    norm = clip_grad_norm_(iter([without, strided]), 0.25)
    assert_same_bits(clip_grad_norm_(plain, 0.25), norm)
    assert strided.grad is kept
    assert_same_bits(grad(strided), grad(plain))
    assert without.grad is None


def test_what_cannot_be_clipped() -> None:
    gradient = np.array([1.0, np.inf], np.float32)
    (p,) = parameters([gradient])
    with pytest.raises(RuntimeError, match=r"^clip_grad_norm_: the norm of the gradients is inf"):
        clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert_same_bits(grad(p), gradient)
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"^clip_grad_norm_: max_norm must be at least 0"):
            clip_grad_norm_(p, bad)
    with pytest.raises(ValueError, match=r"^total_norm: sums must be \[P\], not \[2, 2\]"):
        total_norm(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"^clip_grads_with_norm_: norm must be 0-dimensional"):
        clip_grads_with_norm_(p, 1.0, torch.zeros(1))
    double = torch.zeros(2, dtype=torch.float64)
    double.grad = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"^square_sums: parameter must be torch.float32, not torch.float64"):
        square_sums(double)
