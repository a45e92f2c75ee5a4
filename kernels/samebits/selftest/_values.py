"""Inputs of the self-test, made by integer arithmetic alone: no kernel is needed to make what judges the kernels."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

_word: Any = np.uint64
_SIGN, _FRACTION, _EXPONENTS = _word(1 << 31), _word((1 << 23) - 1), _word(32)
_WEYL, _FIRST, _SECOND = _word(0x9E3779B97F4A7C15), _word(0xBF58476D1CE4E5B9), _word(0x94D049BB133111EB)
# Zeros, infinities and NaN, the smallest and the largest of each kind, and what lies at the bounds of the functions.
_SPECIAL = np.array(
    [
        0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x00000001, 0x80000001,
        0x007FFFFF, 0x00800000, 0x80800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x42B17218, 0xC2CFF1B5, 0x407AE148, 0x41105EB8,
        0x49800000, 0x5F000000, 0x33800000, 0x3F3504F3,
    ],
    dtype=np.uint32,
)  # fmt: skip


def _words(seed: int, count: int) -> Any:
    """`count` words of 64 bits, by the generator SplitMix64: multiplications and shifts of integers."""
    x = _word(seed) + np.arange(1, count + 1, dtype=np.uint64) * _WEYL
    x = (x ^ (x >> _word(30))) * _FIRST
    x = (x ^ (x >> _word(27))) * _SECOND
    return x ^ (x >> _word(31))


class Values:
    """The inputs of one operator: each call makes others, the same on every machine."""

    def __init__(self, operator: str) -> None:
        self._operator = operator
        self._calls = 0

    def _next(self, shape: tuple[int, ...]) -> Any:
        self._calls += 1
        place = hashlib.sha256(f"{self._operator} {self._calls}".encode()).digest()
        return _words(int.from_bytes(place[:4], "little"), int(np.asarray(shape, np.int64).prod()))

    def __call__(self, *shape: int, lowest: int = -3, binades: int = 4) -> Tensor:
        """Floats of both signs, |x| in [2**lowest, 2**(lowest + binades)), binades a power of two up to 32."""
        words = self._next(shape)
        exponent = (words >> _word(40)) % _word(binades) + _word(127 + lowest)
        return _floats((words & (_SIGN | _FRACTION)) | (exponent << _word(23)), shape)

    def positive(self, *shape: int) -> Tensor:
        """Floats in [1/8, 2)."""
        words = self._next(shape)
        return _floats((words & _FRACTION) | (((words >> _word(40)) % _word(4) + _word(124)) << _word(23)), shape)

    def any_bits(self, *shape: int) -> Tensor:
        """Floats of any bits: every magnitude alike, subnormal and NaN among them."""
        return _floats(self._next(shape) & _word(0xFFFFFFFF), shape)

    def strewn(self, *shape: int) -> Tensor:
        """Ordinary floats, each seventh or so a special one."""
        ordinary, words = self(*shape), self._next(shape)
        special = _SPECIAL[(words >> _word(8)) % _word(len(_SPECIAL))].view(np.float32)
        chosen = np.where(words % _word(7) == _word(0), special, ordinary.numpy().reshape(-1))
        return torch.from_numpy(chosen.reshape(shape))

    def integers(self, bound: int, *shape: int) -> Tensor:
        """int64 in 0..bound-1."""
        words = (self._next(shape) >> _word(8)) % _word(bound)
        return torch.from_numpy(words.astype(np.int64).reshape(shape))


def _floats(bits: Any, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(bits.astype(np.uint32).view(np.float32).reshape(shape))
