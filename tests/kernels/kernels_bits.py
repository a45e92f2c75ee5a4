"""Arrays that try kernels hard, and comparison by bits with NaN made canonical."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
FLAVOURS = ("plain", "tiny", "huge", "whole", "special")
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-149), 2.0**-126, 3.4028235e38, -3.4028235e38],
    dtype=np.float32,
)


def floats(seed: int, flavour: str, *shape: int) -> Floats:
    """A binary32 array: ordinary, near the subnormals, near overflow, small integers, or strewn with special values."""
    return np.asarray(_values(np.random.Generator(np.random.PCG64(seed)), flavour, shape), np.float32)


def _values(rng: np.random.Generator, flavour: str, shape: tuple[int, ...]) -> ArrayLike:
    if flavour == "whole":
        return rng.integers(-2, 3, shape)
    values = np.asarray(rng.standard_normal(shape), np.float32)
    if flavour == "tiny":
        return values * 2.0 ** rng.integers(-75, -60, shape)
    if flavour == "huge":
        return values * 2.0 ** rng.integers(60, 65, shape)
    if flavour == "special":
        return np.where(rng.random(shape) < 0.2, rng.choice(SPECIAL, shape), values)
    return values


def flavours() -> st.SearchStrategy[str]:
    """One of FLAVOURS."""
    return st.sampled_from(FLAVOURS)


def seeds() -> st.SearchStrategy[int]:
    """A seed for `floats`."""
    return st.integers(0, 2**32 - 1)


def bits(values: Floats | torch.Tensor) -> NDArray[np.int32]:
    """The bit patterns, every NaN as 0x7fc00000."""
    array = values.detach().numpy() if isinstance(values, torch.Tensor) else values
    return np.where(np.isnan(array), np.float32(np.nan), array).astype(np.float32).view(np.int32)


def assert_same_bits(fast: torch.Tensor, dumb: Floats | torch.Tensor) -> None:
    """Fail unless shapes and bits are equal."""
    assert tuple(fast.shape) == tuple(dumb.shape)
    np.testing.assert_array_equal(bits(fast), bits(dumb))


def strided(array: Floats, layout: int) -> torch.Tensor:
    """The same values as a tensor: 0 contiguous, 1 transposed in memory, 2 every other element, 3 offset by one."""
    tensor = torch.from_numpy(np.array(array))
    if layout == 1 and array.ndim >= 2:
        return tensor.mT.contiguous().mT
    if layout == 2:
        wide = torch.zeros((*array.shape, 2))
        wide[..., 0] = tensor
        return wide[..., 0]
    if layout == 3:
        flat = torch.zeros(array.size + 1)
        flat[1:] = tensor.reshape(-1)
        return flat[1:].reshape(array.shape)
    return tensor
