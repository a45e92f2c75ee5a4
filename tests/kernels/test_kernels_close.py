"""The fast path of the elementary functions equals the one that is exact by itself, whoever is in doubt and wherever.

The slow test compares them over all 2**32 inputs. Run: pytest tests/kernels/test_kernels_close.py -m slow
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import Floats, flavours, floats, seeds
from numba import njit
from samebits import elementary, elementwise
from samebits._close import STEP
from samebits._intrinsics import bits32
from samebits.softmax import exact_exponentials, exponentials

CHUNK = 1 << 18
Kernel = Callable[..., None]
# Names of kernels in their modules, and how many inputs they have; `exact_` and the name is the other path.
MODULES: dict[str, tuple[Any, int]] = {
    "exp": (elementary, 1),
    "erf": (elementary, 1),
    "sigmoid": (elementary, 1),
    "gelu": (elementwise, 1),
    "silu": (elementwise, 1),
    "gelu_backward": (elementwise, 2),
    "silu_backward": (elementwise, 2),
}
ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "hard_rounding.json").read_text())


def paths(name: str) -> tuple[Kernel, Kernel]:
    """The kernel, and its exact path alone."""
    module = MODULES[name][0]
    return getattr(module, f"_{name}"), getattr(module, f"exact_{name}")


def run(path: Kernel, name: str, x: Floats) -> Floats:
    """The path's results; gradients are 1."""
    y, ones = np.full_like(x, 7.0), np.ones_like(x)
    addresses = (ones.ctypes.data, x.ctypes.data)[2 - MODULES[name][1] :]
    path(*addresses, y.ctypes.data, 0, x.size)
    return y


@njit(error_model="numpy")
def differing(got: Any, wanted: Any) -> int:
    """How many results differ, any NaN being like any other."""
    count = 0
    for i in range(got.size):
        count += (bits32(got[i]) != bits32(wanted[i])) & ((got[i] == got[i]) | (wanted[i] == wanted[i]))
    return count


def assert_alike(name: str, x: Floats, fast: Kernel, exact: Kernel) -> None:
    """Fail unless both paths give the same bits."""
    got, wanted = run(fast, name, x), run(exact, name, x)
    assert differing(got, wanted) == 0, f"{name}, from {x[:1]!r} on"


EXACT = {name: paths(name) for name in MODULES}
NAMES = st.sampled_from(sorted(MODULES))


@given(NAMES, st.integers(0, 3 * STEP + 5), seeds(), flavours(), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=150)
def test_both_paths_agree(name: str, size: int, seed: int, flavour: str, scale: float) -> None:
    with np.errstate(all="ignore"):
        assert_alike(name, floats(seed, flavour, size) * np.float32(scale), *EXACT[name])


@pytest.mark.parametrize("name", ["exp", "erf", "sigmoid"])
def test_one_in_doubt_has_its_neighbours_done_again(name: str) -> None:
    """The inputs that are hardest to round, each in every place of a step among harmless ones."""
    hard = np.array([int(pair[0], 16) for pair in ORACLE[name]], np.uint32).view(np.float32)
    wanted = np.array([int(pair[1], 16) for pair in ORACLE[name]], np.uint32).view(np.float32)
    x = np.full((hard.size, STEP), 0.375, np.float32)
    places = np.arange(hard.size) % STEP
    x[np.arange(hard.size), places] = hard
    y = run(EXACT[name][0], name, x.reshape(-1)).reshape(x.shape)
    np.testing.assert_array_equal(y[np.arange(hard.size), places].view(np.int32), wanted.view(np.int32))
    assert_alike(name, x.reshape(-1), *EXACT[name])


@given(st.integers(0, 3 * STEP + 5), seeds(), flavours(), st.floats(-200, 200, width=32))
@settings(deadline=None, max_examples=60)
def test_exponentials_of_a_row(size: int, seed: int, flavour: str, m: float) -> None:
    x = floats(seed, flavour, size)
    got, wanted = np.empty_like(x), np.empty_like(x)
    both(x.ctypes.data, np.float32(m), got.ctypes.data, wanted.ctypes.data, size)
    np.testing.assert_array_equal(got, wanted)


@njit(error_model="numpy")
def both(x: Any, m: Any, got: Any, wanted: Any, n: Any) -> None:
    """Both paths over one row."""
    exponentials(x, m, got, n)
    exact_exponentials(x, m, wanted, 0, n)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_input(name: str) -> None:
    numbers = np.arange(CHUNK, dtype=np.uint32)
    for first in range(0, 1 << 32, CHUNK):
        assert_alike(name, (numbers + np.uint32(first)).view(np.float32), *EXACT[name])
