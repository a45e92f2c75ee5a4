"""dropout equals its plain loop bit for bit, draws by place alone, and drops as often as it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds, strided
from samebits.random import site
from samebits.reference import drawn as reference

SHAPES = st.sampled_from([(0,), (1,), (5,), (3, 4), (2, 7), (3, 0), (2, 3, 5)])
RATES = st.sampled_from([1e-9, 0.1, 0.5, 0.999, 1.0])
PLACE: dict[str, Any] = {"seed": 7, "site": site("block.dropout"), "step": 3}


@given(SHAPES, RATES, st.integers(0, 3), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 9), seeds(), flavours())
@settings(deadline=None, max_examples=80)
def test_forward_and_backward(
    shape: tuple[int, ...], p: float, layout: int, place: int, sample: int, seed: int, flavour: str
) -> None:
    values, grad = floats(seed, flavour, *shape), floats(seed + 1, flavour, *shape)
    x = strided(values, layout).requires_grad_()
    where: dict[str, Any] = {"seed": seed, "site": place, "step": sample, "sample": sample}
    out = samebits.dropout(x, p, **where)
    (dx,) = torch.autograd.grad(out, x, torch.from_numpy(grad))
    with np.errstate(all="ignore"):
        for made, given_values in ((out, values), (dx, grad)):
            flat = given_values.reshape(shape[0], -1) if shape[0] else given_values.reshape(0, 1)
            expected = reference.dropout(flat, p, seed, place, sample, sample)
            assert_same_bits(made, expected.reshape(shape))


def test_the_mask_does_not_depend_on_the_cut_or_on_threads(shared_out: None) -> None:
    x = torch.from_numpy(floats(1, "plain", 12, 5, 33))
    whole = samebits.dropout(x, 0.3, **PLACE)
    samebits.set_num_threads(1)
    parts = [samebits.dropout(x[i : i + 3], 0.3, sample=i, **PLACE) for i in range(0, 12, 3)]
    assert_same_bits(torch.cat(parts), whole)
    for other in ({"seed": 8}, {"site": 1}, {"step": 4}, {"sample": 1}):
        assert not torch.equal(samebits.dropout(x, 0.3, **{**PLACE, **other}), whole)


def test_it_drops_as_often_as_it_says_and_keeps_the_mean() -> None:
    out = samebits.dropout(torch.ones(100, 1000), 0.3, **PLACE)
    assert abs((out == 0).double().mean() - 0.3) < 0.005
    assert abs(out.double().mean() - 1.0) < 0.01


def test_outside_of_training_it_is_the_identity() -> None:
    x = torch.ones(3)
    assert samebits.dropout(x, 0.5, training=False, **PLACE) is x
    assert samebits.dropout(x, 0.0, **PLACE) is x
    assert samebits.dropout(torch.tensor(2.0), 0.5, **PLACE).item() in (0.0, 4.0)


def test_bad_arguments() -> None:
    x = torch.ones(3, requires_grad=True)
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"^dropout: p must be within 0\.\.1"):
            samebits.dropout(x, bad, **PLACE)
    with pytest.raises(ValueError, match=r"^dropout: seed must be"):
        samebits.dropout(x, seed=-1, site=0, step=0)
    with pytest.raises(ValueError, match=r"^dropout: 3 samples from 4294967294 on"):
        samebits.dropout(x, sample=2**32 - 2, **PLACE)
    with pytest.raises(TypeError, match=r"^dropout: x must be torch.float32, not torch.float64"):
        samebits.dropout(x.double(), **PLACE)
    with pytest.raises(RuntimeError, match=r"^dropout: there is no second derivative"):
        torch.autograd.grad(samebits.dropout(x, **PLACE).sum(), x, create_graph=True)
