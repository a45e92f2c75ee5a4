"""Random tensors as pure functions of where they stand: Philox4x32-10, no hidden state, no order of calls.

A number depends on (seed, site, step, sample, element) alone. Philox's key is the 64-bit seed XOR site, low half
first; its counter is (element block, sample index, step, 0). The first axis of a tensor counts samples (of a batch, or
the rows of a parameter), beginning at `first_sample`; `element` is the flat position in the other axes. Word w of
element e is output lane e % 4 of block e // 4. A 0-dimensional tensor is one sample of one element.

Philox is by J. K. Salmon and others, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._check import require
from samebits._compile import Kernel, f32, inlined, kernel, u32, u64
from samebits._elementary import cos32_reduced, log32, sin32_reduced
from samebits._intrinsics import fma32, store32
from samebits._split import split

_word: Any = np.uint64  # Numba would make int64, or worse binary64, of a uint64 and a plain number
_single: Any = np.float32
_M0, _M1, _W0, _W1 = _word(0xD2511F53), _word(0xCD9E8D57), _word(0x9E3779B9), _word(0xBB67AE85)
_LOW, _HALF, _NINE, _ONE = _word(0xFFFFFFFF), _word(32), _word(9), _word(1)
_ULP, _MINUS_TWO, _TWO_PI = _single(5.9604644775390625e-08), _single(-2.0), _single(6.283185307179586)
_ROUNDS, _LANES = 10, 4
WORDS, KEYS = 1 << 32, 1 << 64  # the bounds of steps and samples, and of seeds and sites


@inlined()
def philox(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of a counter and a key, all 32-bit words in uint64."""
    for _ in range(_ROUNDS):
        p, q = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (q >> _HALF) ^ c1 ^ k0, q & _LOW, (p >> _HALF) ^ c3 ^ k1, p & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@inlined()
def unit(word: int) -> Any:
    """(2 * (w >> 9) + 1) * 2**-24, exactly: inside (0, 1), never at its ends."""
    return f32(u32(((word >> _NINE) << _ONE) | _ONE)) * _ULP


@kernel("void(intp, intp, uint64, uint64, uint64, float32, float32, intp, intp)")
def _uniform(
    made: int, count: int, seed: int, step: int, sample: int, scale: float, shift: float, begin: int, end: int
) -> None:
    for i in range(begin, end):
        for block in range((count + _LANES - 1) // _LANES):
            words = philox(u64(block), sample + u64(i), step, u64(0), seed & _LOW, seed >> _HALF)
            for lane in range(min(_LANES, count - block * _LANES)):
                store32(made, i * count + block * _LANES + lane, fma32(unit(words[lane]), scale, shift))


@kernel("void(intp, intp, uint64, uint64, uint64, float32, intp, intp)", binary64=True)
def _normal(made: int, count: int, seed: int, step: int, sample: int, std: float, begin: int, end: int) -> None:
    for i in range(begin, end):
        for block in range((count + _LANES - 1) // _LANES):
            words = philox(u64(block), sample + u64(i), step, u64(0), seed & _LOW, seed >> _HALF)
            for lane in range(min(_LANES, count - block * _LANES)):
                pair = lane & 2
                radius = f32(math.sqrt(_MINUS_TWO * log32(unit(words[pair]))))
                angle = _TWO_PI * unit(words[pair + 1])
                wave = sin32_reduced(angle) if lane & 1 else cos32_reduced(angle)
                store32(made, i * count + block * _LANES + lane, (radius * wave) * std)


def site(path: str) -> int:
    """A parameter's or operator's site: the first 8 bytes, little-endian, of SHA-256 of its path in the uncut model."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little")


def uniform(
    shape: Sequence[int], low: float, high: float, *, seed: int, site: int, step: int = 0, first_sample: int = 0
) -> Tensor:
    """fma(u, binary32(high - low), binary32(low)), u = (2 * (w >> 9) + 1) * 2**-24, as a float32 tensor of the shape.

    seed, site: 0 <= number < 2**64; step, first_sample: 0 <= number < 2**32. ValueError for what does not fit.
    """
    require(math.isfinite(high - low) and low <= high, "uniform", f"low {low} and high {high} must be finite, in order")
    span, place = np.float32(high - low), (seed, site, step, first_sample)
    return _filled("uniform", _uniform, shape, place, span, np.float32(low))


def normal(shape: Sequence[int], std: float, *, seed: int, site: int, step: int = 0, first_sample: int = 0) -> Tensor:
    """Normal numbers of mean 0 by Box-Muller, as a float32 tensor of the shape.

    Of the words (w0, w1) of elements 4b and 4b+1, or (w2, w3) of 4b+2 and 4b+3, the uniforms u, u' as in `uniform`:
    r = sqrt(-2 * log(u)), a = binary32(2 pi) * u'; (r * cos(a)) * std for the first element, (r * sin(a)) * std for
    the second. Arguments as in `uniform`; std >= 0.
    """
    require(math.isfinite(std) and std >= 0.0, "normal", f"std must be finite and not negative, not {std}")
    return _filled("normal", _normal, shape, (seed, site, step, first_sample), np.float32(std))


def _filled(
    operator: str, compiled: Kernel, shape: Sequence[int], place: tuple[int, int, int, int], *numbers: Any
) -> Tensor:
    """A new tensor from the kernel, after checks."""
    seed, site, step, first_sample = place
    made = torch.empty(tuple(shape), dtype=torch.float32)
    samples = made.shape[0] if made.dim() else 1
    count = made[0].numel() if made.dim() and samples else 1
    for name, number, bound in (("seed", seed, KEYS), ("site", site, KEYS), ("step", step, WORDS)):
        require(0 <= number < bound, operator, f"{name} must be at least 0 and below {bound}, not {number}")
    fits = first_sample >= 0 and first_sample + samples <= WORDS
    require(fits, operator, f"{samples} samples from {first_sample} on are not all in 0..2**32-1")
    key = np.uint64(seed ^ site)
    split(compiled, samples, count, made.data_ptr(), count, key, np.uint64(step), np.uint64(first_sample), *numbers)
    return made
