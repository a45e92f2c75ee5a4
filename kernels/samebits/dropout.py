"""dropout, whose mask is a function of where an element stands, so that no draw depends on the order of calls."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._check import require, require_tensor
from samebits._compile import inlined, kernel, u64
from samebits._intrinsics import load32, store32
from samebits._split import differentiable, split
from samebits._storage import stored
from samebits.random import KEYS, WORDS, philox, unit

ZERO = np.float32(0.0)
_word: Any = np.uint64
_LOW, _HALF = _word(0xFFFFFFFF), _word(32)


@inlined()
def _passed(word: int, value: Any, p: Any, scale: Any) -> Any:
    return value * scale if unit(word) >= p else ZERO


@kernel("void(intp, intp, intp, uint64, uint64, uint64, float32, float32, intp, intp)")
def _masked(
    x: int, y: int, count: int, key: int, step: int, sample: int, p: float, scale: float, begin: int, end: int
) -> None:
    """One Philox block makes four neighbours; the last block of a sample may make fewer."""
    for i in range(begin, end):
        first = i * count
        for block in range((count + 3) // 4):
            words = philox(u64(block), sample + u64(i), step, u64(0), key & _LOW, key >> _HALF)
            place = first + block * 4
            for lane in range(min(4, count - block * 4)):
                store32(y, place + lane, _passed(words[lane], load32(x, place + lane), p, scale))


class _Place(NamedTuple):
    """Everything that a mask depends on."""

    p: float
    key: int
    step: int
    sample: int

    def apply(self, x: Tensor) -> Tensor:
        """x, or a gradient, through the mask."""
        x, y = x.contiguous(), torch.empty(x.shape, dtype=torch.float32)
        samples = x.shape[0] if x.dim() else 1
        count = x.numel() // samples if samples else 0
        scale = np.float32(1.0 / (1.0 - self.p)) if self.p < 1.0 else ZERO  # at 1 nothing is kept
        numbers = (np.uint64(self.key), np.uint64(self.step), np.uint64(self.sample), np.float32(self.p), scale)
        split(_masked, samples, count, x.data_ptr(), y.data_ptr(), count, *numbers)
        return y


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, place: _Place) -> Tensor:
        ctx.place = place
        return place.apply(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative("dropout")
        return ctx.place.apply(grad), None


@stored("x")
def dropout(
    x: Tensor, p: float = 0.5, *, seed: int, site: int, step: int, sample: int = 0, training: bool = True
) -> Tensor:
    """Float32 x [N, ...] with elements set to +0 with probability p and the others scaled; the result is like x.

    u = (2 * (w >> 9) + 1) * 2**-24, w being the Philox word of (seed, site, step, sample + row, element in the row), as
    in `samebits.random`; y = x * binary32(1 / (1 - p)) where u >= binary32(p), else +0. `sample` is the place of row 0
    in the whole batch, so microbatches draw what the whole batch would. Gradient: the same of grad; the mask is
    computed again, not kept. With training=False or p = 0 the result is x itself.

    seed, site: 0 <= number < 2**64; step, sample: 0 <= number < 2**32; site: see `samebits.random.site`.
    TypeError: not a float32 tensor; ValueError: p not within 0..1, numbers that do not fit; RuntimeError: not in the
    CPU's memory.
    """
    require_tensor("dropout", "x", x)
    require(0.0 <= p <= 1.0, "dropout", f"p must be within 0..1, not {p}")
    for name, number, bound in (("seed", seed, KEYS), ("site", site, KEYS), ("step", step, WORDS)):
        require(0 <= number < bound, "dropout", f"{name} must be at least 0 and below {bound}, not {number}")
    samples = x.shape[0] if x.dim() else 1
    fits = sample >= 0 and sample + samples <= WORDS
    require(fits, "dropout", f"{samples} samples from {sample} on are not all in 0..2**32-1")
    if not training or p == 0.0:
        return x
    place = _Place(p, seed ^ site, step, sample)
    if not differentiable(x):
        return place.apply(x)
    result: Tensor = _Dropout.apply(x, place)  # type: ignore[no-untyped-call]  # torch's own
    return result
