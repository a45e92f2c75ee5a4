"""Sums and products along one axis of a tensor: chains that continue what stands in a total, one an output.

The tensor is seen as [outer, n, inner]. Where inner is 1, the rows are turned into panels so that many chains run side
by side (_chains.py); else the columns already lie side by side.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from samebits._chains import FLOAT, PANEL_FLOATS, row_products, row_sums
from samebits._compile import kernel
from samebits._intrinsics import fma32, load32, store32
from samebits._split import split, split_rows
from samebits._vectors import LANES

WIDTH = 1024  # columns that one thread takes at a time; their chains stay in the first-level cache
SCRATCH_FLOATS = 2 * PANEL_FLOATS + LANES


@kernel("void(intp, intp, intp, intp, intp, intp, intp)")
def _column_sums(x: int, total: int, n: int, inner: int, blocks: int, begin: int, end: int) -> None:
    """Four rows at a time, so that the chains are loaded and stored less often. A unit is one block of columns."""
    for unit in range(begin, end):
        outer, first = unit // blocks, unit % blocks * WIDTH
        width, goal = min(WIDTH, inner - first), total + (outer * inner + first) * FLOAT
        line, row = x + (outer * n * inner + first) * FLOAT, inner * FLOAT
        for k in range(0, n - 3, 4):
            at = line + k * row
            for j in range(width):
                chain = load32(goal, j) + load32(at, j)
                chain = (chain + load32(at + row, j)) + load32(at + 2 * row, j)
                store32(goal, j, chain + load32(at + 3 * row, j))
        for k in range(n - n % 4, n):
            at = line + k * row
            for j in range(width):
                store32(goal, j, load32(goal, j) + load32(at, j))


@kernel("void(intp, intp, intp, intp, intp, intp, intp, intp)")
def _column_products(a: int, b: int, total: int, n: int, inner: int, blocks: int, begin: int, end: int) -> None:
    for unit in range(begin, end):
        outer, first = unit // blocks, unit % blocks * WIDTH
        width, goal = min(WIDTH, inner - first), total + (outer * inner + first) * FLOAT
        for k in range(n):
            shift = ((outer * n + k) * inner + first) * FLOAT
            for j in range(width):
                store32(goal, j, fma32(load32(a + shift, j), load32(b + shift, j), load32(goal, j)))


@kernel("void(intp, intp, intp, intp, intp, intp)")
def _row_sums(x: int, total: int, n: int, scratch: int, begin: int, end: int) -> None:
    chains = scratch + 2 * PANEL_FLOATS * FLOAT
    for first in range(begin, end, LANES):
        num_rows = min(LANES, end - first)
        for i in range(LANES):
            store32(chains, i, load32(total, first + min(i, num_rows - 1)))
        row_sums(x + first * n * FLOAT, n, num_rows, n, scratch, chains)
        for i in range(num_rows):
            store32(total, first + i, load32(chains, i))


@kernel("void(intp, intp, intp, intp, intp, intp, intp)")
def _row_products(a: int, b: int, total: int, n: int, scratch: int, begin: int, end: int) -> None:
    chains = scratch + 2 * PANEL_FLOATS * FLOAT
    for first in range(begin, end, LANES):
        num_rows, shift = min(LANES, end - first), first * n * FLOAT
        for i in range(LANES):
            store32(chains, i, load32(total, first + min(i, num_rows - 1)))
        row_products(a + shift, b + shift, n, num_rows, n, scratch, chains)
        for i in range(num_rows):
            store32(total, first + i, load32(chains, i))


def _along(columns: Any, rows: Any, axis: int, shape: Any, total: Tensor, *pointers: int) -> None:
    outer, n, inner = shape[:axis].numel(), shape[axis], shape[axis + 1 :].numel()
    if inner == 1:
        split_rows(rows, outer, n, SCRATCH_FLOATS, *pointers, total.data_ptr(), n)
        return
    blocks = -(-inner // WIDTH)
    split(columns, outer * blocks, n * min(inner, WIDTH), *pointers, total.data_ptr(), n, inner, blocks)


def add_along(x: Tensor, axis: int, total: Tensor) -> None:
    """total = total + x[k] for ascending k of an axis; total has the other axes. Both are contiguous."""
    _along(_column_sums, _row_sums, axis, x.shape, total, x.data_ptr())


def add_products_along(a: Tensor, b: Tensor, axis: int, total: Tensor) -> None:
    """total = fma(a[k], b[k], total) for ascending k of an axis, a and b of one shape. All are contiguous."""
    _along(_column_products, _row_products, axis, a.shape, total, a.data_ptr(), b.data_ptr())
