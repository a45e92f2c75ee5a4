"""bfloat16 as storage: the exact way up to binary32, and the one rounding on the way down.

torch's own casts are not used: what they make of a NaN is not promised, and they have no canary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._check import require_tensor
from samebits._compile import Kernel, inlined, intrinsic, kernel, u32
from samebits._intrinsics import F32, I32, bits32, element, load32, store32
from samebits._split import differentiable, split

I16 = ir.IntType(16)
WORD: Any = np.uint32
SIXTEEN, ONE, BELOW_HALF, CANONICAL_NAN = WORD(16), WORD(1), WORD(0x7FFF), WORD(0x7FC0)


@intrinsic
def load_widened(context: Any, pointer: Any, index: Any) -> Any:
    """The bfloat16 at pointer[index] as a binary32, exactly: its bits are the upper half."""

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        half = b.load(element(b, args[0], args[1], I16))
        return b.bitcast(b.shl(b.zext(half, I32), I32(16)), F32)

    return types.float32(types.intp, types.intp), generate


@intrinsic
def store16(context: Any, pointer: Any, index: Any, word: Any) -> Any:
    """pointer[index] = the lower 16 bits of a word."""

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        b.store(b.trunc(args[2], I16), element(b, args[0], args[1], I16))
        return ctx.get_dummy_value()

    return types.void(types.intp, types.intp, types.uint32), generate


@inlined()
def nearest16(x: float) -> Any:
    """The bits of the bfloat16 nearest to x, ties to even: subnormals and -0 stay, what is too large is infinite.

    Just less than half of the last place is added, and one more where the last bit that stays is odd.
    """
    word = u32(bits32(x))
    rounded = u32(word + BELOW_HALF + ((word >> SIXTEEN) & ONE)) >> SIXTEEN
    return CANONICAL_NAN if x != x else rounded


@kernel("void(intp, intp, intp, intp)")
def _widen(x: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        store32(y, i, load_widened(x, i))


@kernel("void(intp, intp, intp, intp)")
def _round(x: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        store16(y, i, u32(nearest16(load32(x, i))))


def _cast(compiled: Kernel, x: Tensor, dtype: torch.dtype) -> Tensor:
    source, made = x.contiguous(), torch.empty(x.shape, dtype=dtype)
    split(compiled, made.numel(), 1, source.data_ptr(), made.data_ptr())
    return made


def widened(x: Tensor) -> Tensor:
    """The same numbers as a new float32 tensor, not recorded for backward."""
    return _cast(_widen, x, torch.float32)


def rounded(x: Tensor) -> Tensor:
    """The nearest bfloat16 of each element as a new tensor, not recorded for backward."""
    return _cast(_round, x, torch.bfloat16)


class _Widen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: str) -> Tensor:
        ctx.operator = operator
        return widened(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative(ctx.operator)
        return rounded(grad), None


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: str) -> Tensor:
        ctx.operator = operator
        return rounded(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative(ctx.operator)
        return widened(grad), None


def widen(x: Tensor, operator: str) -> Tensor:
    """`widened`, recorded for backward if torch records; a second derivative is refused in the operator's name."""
    if not differentiable(x):
        return widened(x)
    result: Tensor = _Widen.apply(x, operator)  # type: ignore[no-untyped-call]  # torch's own
    return result


def round_once(x: Tensor, operator: str) -> Tensor:
    """`rounded`, recorded for backward if torch records; a second derivative is refused in the operator's name."""
    if not differentiable(x):
        return rounded(x)
    result: Tensor = _Round.apply(x, operator)  # type: ignore[no-untyped-call]  # torch's own
    return result


def to_float32(x: Tensor) -> Tensor:
    """bfloat16 x of any shape as float32, exactly; a float32 x is returned as it is.

    Every number, -0 and subnormal stays what it is, a NaN keeps its payload. Gradient: grad rounded to bfloat16 once,
    as `to_bfloat16` does.
    TypeError: neither bfloat16 nor float32; RuntimeError: not in the CPU's memory, or a second derivative.
    """
    require_tensor("to_float32", "x", x, stored_dtype(x))
    return x if x.dtype is torch.float32 else widen(x, "to_float32")


def to_bfloat16(x: Tensor) -> Tensor:
    """float32 x of any shape as bfloat16, rounded to nearest even; a bfloat16 x is returned as it is.

    Subnormals and -0 stay, beyond the largest bfloat16 comes infinity, every NaN is 0x7fc0. Gradient: grad, exactly.
    TypeError: neither float32 nor bfloat16; RuntimeError: not in the CPU's memory, or a second derivative.
    """
    require_tensor("to_bfloat16", "x", x, stored_dtype(x))
    return x if x.dtype is torch.bfloat16 else round_once(x, "to_bfloat16")


def stored_dtype(x: object) -> torch.dtype:
    """What x must be: bfloat16 if it is, else float32."""
    return torch.bfloat16 if isinstance(x, Tensor) and x.dtype is torch.bfloat16 else torch.float32
