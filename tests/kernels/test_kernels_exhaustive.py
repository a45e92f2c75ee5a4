"""Correct rounding over all 2**32 inputs of each elementary function. Slow: some minutes a function.

Run: pytest tests/kernels/test_kernels_exhaustive.py -m slow --log-cli-level=INFO

The C library's binary64 value decides, except within 8 ulps of a midpoint between two binary32 (or of any place where
a subnormal result rounds), where mpmath does. So it is enough that the library errs by less than 8 ulps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import samebits
import torch
from numba import njit
from samebits._intrinsics import bits64
from samebits.reference import elementary as reference

CHUNK = 1 << 22
logger = logging.getLogger(__name__)
DOUBT = 8.0


@njit(error_model="numpy")
def in_doubt(close: float) -> bool:
    """Whether a result within DOUBT ulps of this binary64 number could round to either of two binary32."""
    size = abs(close)
    if size == 0.0 or not size < 1e300:
        return False
    if size < 2.0**-126:
        place = size * 2.0**149
        return abs(place - math.floor(place) - 0.5) <= DOUBT * 2.0**-52 * max(place, 2.0**-52)
    return bool(abs((bits64(size) & ((1 << 29) - 1)) - (1 << 28)) <= DOUBT)


def comparer(libm: Callable[[float], float]) -> Any:
    """Compiled: write the inputs in doubt to `doubtful`, return their number and that of the wrong results."""

    @njit(error_model="numpy")
    def compare(x: Any, y: Any, doubtful: Any) -> tuple[int, int]:
        doubts, wrong = 0, 0
        for i in range(x.size):
            close = libm(np.float64(x[i]))
            if in_doubt(close):
                doubtful[doubts] = i
                doubts += 1
                continue
            nearest = np.float32(close)
            same = nearest == y[i] and math.copysign(1.0, nearest) == math.copysign(1.0, y[i])
            wrong += not (same or (nearest != nearest and y[i] != y[i]))
        return doubts, wrong

    return compare


LIBM: dict[str, Callable[[float], float]] = {
    "exp": math.exp,
    "log": math.log,
    "erf": math.erf,
    "tanh": math.tanh,
    "sigmoid": njit(error_model="numpy")(lambda x: 1.0 / (1.0 + math.exp(-x))),
    "sqrt": math.sqrt,
    "rsqrt": njit(error_model="numpy")(lambda x: 1.0 / math.sqrt(x)),
    "sin": math.sin,
    "cos": math.cos,
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(LIBM))
def test_every_input(name: str) -> None:
    fast, dumb, compare = getattr(samebits, name), getattr(reference, name), comparer(LIBM[name])
    doubtful, hard = np.empty(CHUNK, np.int64), 0
    for first in range(0, 1 << 32, CHUNK):
        x = (np.arange(CHUNK, dtype=np.uint32) + np.uint32(first)).view(np.float32)
        y = fast(torch.from_numpy(x)).numpy()
        doubts, wrong = compare(x, y, doubtful)
        assert wrong == 0, f"{name}: {wrong} results from {first:#010x} on"
        for i in doubtful[:doubts]:
            assert y[i].tobytes() == dumb(x[i]).tobytes(), f"{name}({x[i]!r})"
        hard += doubts
    logger.info("%s: every input is rounded correctly; mpmath decided %d", name, hard)
