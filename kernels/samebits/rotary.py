"""rotary: queries and keys turned by angles that grow with their position."""

from __future__ import annotations

import math
from array import array
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._angles import BLOCK, POSITIONS, Floats, block
from samebits._check import require, require_tensor, size
from samebits._compile import kernel
from samebits._intrinsics import load32, load_i64, store32
from samebits._split import differentiable, split
from samebits._storage import stored

FLOAT = 4  # bytes
X, Y, TABLE, HEADS, ROWS, HALF, INTERLEAVED = 0, 4, 8, 10, 11, 12, 13


@kernel("void(intp, intp, intp, intp)")
def _turn(sizes: int, back: int, begin: int, end: int) -> None:
    """y from x for heads begin..end of all batches; sizes holds addresses and strides in the order of `_turned`."""
    heads, rows, half = load_i64(sizes, HEADS), load_i64(sizes, ROWS), load_i64(sizes, HALF)
    step, apart = (2, 1) if load_i64(sizes, INTERLEAVED) else (1, half)
    for unit in range(begin, end):
        batch, head = unit // heads, unit % heads
        x = load_i64(sizes, X) + (batch * load_i64(sizes, X + 1) + head * load_i64(sizes, X + 2)) * FLOAT
        y = load_i64(sizes, Y) + (batch * load_i64(sizes, Y + 1) + head * load_i64(sizes, Y + 2)) * FLOAT
        table = load_i64(sizes, TABLE) + batch * load_i64(sizes, TABLE + 1) * FLOAT
        for t in range(rows):
            line, goal = x + t * load_i64(sizes, X + 3) * FLOAT, y + t * load_i64(sizes, Y + 3) * FLOAT
            cosines = table + t * 2 * half * FLOAT
            for i in range(half):
                c, s = load32(cosines, i), load32(cosines, half + i)
                s = -s if back else s
                a, b = load32(line, i * step), load32(line, i * step + apart)
                store32(goal, i * step, a * c - b * s)
                store32(goal, i * step + apart, b * c + a * s)


class Turn:
    """The cosines and sines for one call, and how pairs stand."""

    def __init__(self, table: Floats, interleaved: bool) -> None:
        self.table, self.interleaved = np.ascontiguousarray(table), interleaved

    def run(self, x: Tensor, y: Tensor, *, back: bool = False) -> None:
        """y = x turned, or turned back, both [B, H, T, D] with elements of a row side by side; y may be x."""
        batches, heads, rows, width = x.shape
        table_step = 0 if self.table.ndim == 3 else rows * width
        sizes = array("q", (
            x.data_ptr(), *x.stride()[:3], y.data_ptr(), *y.stride()[:3], self.table.ctypes.data, table_step,
            heads, rows, width // 2, int(self.interleaved),
        ))  # fmt: skip
        split(_turn, batches * heads, rows * width, sizes.buffer_info()[0], int(back))


@lru_cache(maxsize=64)
def _ascending(base: float, width: int, first: int, count: int) -> Floats:
    last = first + max(count, 1)
    blocks = [block(base, width, number) for number in range(first // BLOCK, -(-last // BLOCK))]
    start = first % BLOCK
    return np.concatenate(blocks)[start : start + count]


def turn_for(operator: str, shape: torch.Size, positions: int | Tensor, base: float, interleaved: bool) -> Turn:
    """What turns x of this shape [B, H, T, D]; arguments are checked."""
    batch, _, rows, width = shape
    require(width % 2 == 0, operator, f"the width {width} must be even")
    require(math.isfinite(base) and base > 0.0, operator, f"base must be finite and positive, not {base}")
    if isinstance(positions, Tensor):
        require_tensor(operator, "positions", positions, torch.int64)
        fits = positions.shape in ((rows,), (batch, rows))
        require(fits, operator, f"positions {size(positions)} must be [{rows}] or [{batch}, {rows}]")
        _check_range(operator, *(positions.aminmax() if positions.numel() else (0, 0)))
        return Turn(_gathered(float(base), width, positions), interleaved)
    if not isinstance(positions, int) or isinstance(positions, bool):
        raise TypeError(f"{operator}: positions must be an int or a Tensor, not {type(positions).__name__}")
    _check_range(operator, positions, positions + rows - 1)
    return Turn(_ascending(float(base), width, positions, rows), interleaved)


def _check_range(operator: str, lowest: int | Tensor, highest: int | Tensor) -> None:
    if lowest < 0 or highest >= POSITIONS:
        raise IndexError(f"{operator}: positions must lie in 0..{POSITIONS - 1}, not {int(lowest)}..{int(highest)}")


def _gathered(base: float, width: int, positions: Tensor) -> Floats:
    wanted = positions.flatten().tolist()
    rows = [block(base, width, position // BLOCK)[position % BLOCK] for position in wanted]
    return np.array(rows, np.float32).reshape(*positions.shape, 2, width // 2)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Turn) -> Tensor:
        ctx.turn = turn
        return _turned(x, turn, back=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative("rotary")
        return _turned(grad, ctx.turn, back=True), None


def _turned(x: Tensor, turn: Turn, *, back: bool) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=torch.float32)
    turn.run(x, out, back=back)
    return out


@stored("x")
def rotary(x: Tensor, positions: int | Tensor = 0, base: float = 10000.0, interleaved: bool = False) -> Tensor:
    """float32 x [B, H, T, D], each row turned by its position; the result is [B, H, T, D].

    positions: that of the first row, the others following; or int64 [T] or [B, T]. Pair i of a row is its elements i
    and i + D/2 (Llama's half-split form), or 2i and 2i + 1 with interleaved=True. With (a, b) that pair at position t,
    c and s being cos and sin of t * base**(-2i/D), each a pure function of (base, D, i, t) rounded to binary32 once
    (the method: Su et al., arXiv 2104.09864):

        y = (a*c - b*s, b*c + a*s): each product rounded, then the difference or sum.
    Backward turns back: (g*c + h*s, h*c - g*s) for the gradients (g, h) of that pair.

    TypeError: x is not float32, positions are no int or int64 tensor; ValueError: shapes that do not fit, an odd D, a
    base that is not positive; IndexError: positions outside 0..2**31 - 1; RuntimeError: not in the CPU's memory.
    """
    require_tensor("rotary", "x", x)
    require(x.dim() == 4, "rotary", f"x must be [B, H, T, D], not {size(x)}")
    turn = turn_for("rotary", x.shape, positions, base, interleaved)
    if not differentiable(x):
        return _turned(x, turn, back=False)
    result: Tensor = _Rotary.apply(x, turn)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result
