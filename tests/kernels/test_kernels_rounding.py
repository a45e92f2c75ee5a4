"""The elementary functions return the binary32 nearest to the true value: samples, boundaries, hardest inputs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import Floats, assert_same_bits
from samebits._split import GRAIN
from samebits.reference import elementary as reference
from samebits.reference.scalar import F32, rounded

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "hard_rounding.json").read_text())
NAMES = ["exp", "log", "erf", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "cos"]
BOUNDARIES = [
    0.0, 2.0**-149, 2.0**-127, 2.0**-126, 2.0**-64, 2.0**-25, 2.0**-24, 2.0**-12, 0.5, 0.70710678, 1.0, 1.41421356, 2.0,
    17.3287, math.pi / 4, math.pi / 2, math.pi, 2 * math.pi, 3.8325, 3.92, 9.0109, 9.02, 87.33654, 88.72284, 103.27893,
    103.97208, 130.0, 150.0, 1048576.0, 2.0**24, 2.0**64, 16367173.0 * 2.0**72, 3.4028235e38,
]  # fmt: skip


def from_bits(words: list[str]) -> Floats:
    return np.array([int(word, 16) for word in words], np.uint32).view(np.float32)


def expected(name: str, x: Floats) -> Floats:
    f = getattr(reference, name)
    with np.errstate(all="ignore"):
        return np.array([f(value) for value in x], np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_the_hardest_inputs(name: str) -> None:
    inputs, outputs = (from_bits([pair[i] for pair in ORACLE[name]]) for i in (0, 1))
    assert_same_bits(getattr(samebits, name)(torch.from_numpy(inputs)), outputs)
    assert_same_bits(torch.from_numpy(expected(name, inputs)), outputs)


@pytest.mark.parametrize("name", NAMES)
def test_around_boundaries(name: str) -> None:
    ends = np.array(BOUNDARIES, np.float32).view(np.int32)[:, None] + np.arange(-40, 41, dtype=np.int32)
    positive = np.abs(ends).astype(np.int32).reshape(-1).view(np.float32)
    x = np.concatenate([positive, -positive])
    assert_same_bits(getattr(samebits, name)(torch.from_numpy(x)), expected(name, x))


@pytest.mark.parametrize("name", NAMES)
def test_many_random_bits(name: str) -> None:
    rng = np.random.Generator(np.random.PCG64(9))
    x = rng.integers(0, 2**32, 2 * GRAIN + 1, dtype=np.uint32).view(np.float32)
    x[::2] = rng.standard_normal(GRAIN + 1).astype(np.float32) * 4
    assert_same_bits(getattr(samebits, name)(torch.from_numpy(x)), expected(name, x))


@given(st.sampled_from(NAMES), st.floats(width=32, allow_nan=False, allow_infinity=False))
@settings(deadline=None, max_examples=300)
def test_the_reference_is_mpmath_rounded_once(name: str, value: float) -> None:
    exact: dict[str, Any] = {"rsqrt": lambda x: 1 / mp.sqrt(x), "sigmoid": lambda x: 1 / (1 + mp.exp(-x))}
    if (name in ("log", "sqrt", "rsqrt") and value <= 0) or (name in ("exp", "sigmoid") and abs(value) > 200):
        return
    with mp.workprec(400):
        function = exact[name] if name in exact else getattr(mp, name)
        true = function(mp.mpf(value))
        sign, mantissa, exponent, _ = true._mpf_
    nearest = rounded(Fraction(-mantissa if sign else mantissa) * Fraction(2) ** exponent)
    if nearest == 0:
        assert getattr(reference, name)(F32(value)) == 0
    else:
        assert getattr(reference, name)(F32(value)) == nearest


def test_special_values() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0])
    nan, inf = torch.nan, torch.inf
    answers = {
        "exp": [nan, inf, 0.0, 1.0, 1.0],
        "log": [nan, inf, nan, -inf, -inf],
        "erf": [nan, 1.0, -1.0, 0.0, -0.0],
        "tanh": [nan, 1.0, -1.0, 0.0, -0.0],
        "sigmoid": [nan, 1.0, 0.0, 0.5, 0.5],
        "sqrt": [nan, inf, nan, 0.0, -0.0],
        "rsqrt": [nan, 0.0, nan, inf, -inf],
        "sin": [nan, nan, nan, 0.0, -0.0],
        "cos": [nan, nan, nan, 1.0, 1.0],
    }
    for name, values in answers.items():
        assert_same_bits(getattr(samebits, name)(x), torch.tensor(values))


def test_the_committed_constants_are_those_that_the_script_makes() -> None:
    root = Path(__file__).parents[2]
    made = subprocess.run(
        [sys.executable, root / "kernels" / "make_coefficients.py"],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert made.stdout == (root / "kernels" / "samebits" / "_coefficients.py").read_text()
