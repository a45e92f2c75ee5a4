"""C = A @ B (+ bias): one ascending chain of fused multiply-adds per output, blocked for the caches.

Only outputs are divided, among panels of columns, tiles of rows, and threads; k is cut into blocks, each of which
continues the chains that stand in C. So no size below, and no caller's choice, changes a bit.

Strides count floats and addresses are integers. A may have any strides. B has either unit stride along a row (used in
place when few rows of A follow, else packed) or unit stride along a column (transposed in registers while packed).
"""

from __future__ import annotations

import numpy as np

from samebits._compile import kernel, routine
from samebits._intrinsics import call_kernel, load32, store32
from samebits._tile import copy_vector, tile, transpose_block
from samebits._vectors import LANES, ROWS, VECTORS

DEPTH = 384  # k per block: a panel of B stays in the first-level cache, or near it
SHALLOW = 32  # of a depth up to this, writing C is the work, and C is written row by row
PANELS = 16  # panels of B packed at a time
BLOCK = 16 * ROWS  # rows of A that meet these panels before the next rows do
IN_PLACE = 8 * ROWS  # with so few rows, packing a row-major B costs more than it saves
FEW_PANELS = 4  # of B, that a block of A meets, below which copying it costs more than it saves
TOGETHER = 8  # rows of B that are read side by side while it is packed
FAR = 256  # floats between elements of A beyond which it is copied together: pages, and sets of a cache, are few
WIDTH = VECTORS * LANES
A_ROW, A_STEP = DEPTH + LANES, BLOCK + LANES  # of a copied block; no power of two, which would crowd one set of a cache
NEUTRAL_AT = DEPTH * PANELS * WIDTH
A_AT = NEUTRAL_AT + WIDTH
SCRATCH_FLOATS = A_AT + (BLOCK + LANES) * (DEPTH + LANES)
FLOAT = 4  # bytes
ZERO, MINUS_ZERO = np.float32(0.0), np.float32(-0.0)


@routine()
def copy_rows(source: int, row: int, width: int, rows: int, target: int, step: int) -> None:
    """Rows of `width` floats, padded with +0 to whole vectors, to rows `step` floats apart."""
    for i in range(rows):
        line, goal = source + i * row * FLOAT, target + i * step * FLOAT
        for j in range(0, width, LANES):
            copy_vector(line + j * FLOAT, goal + j * FLOAT, min(LANES, width - j))


@routine()
def pack_columns(source: int, column: int, width: int, vectors: int, depth: int, target: int) -> None:
    """A panel of a column-major B: `width` columns of depth floats, turned; lanes beyond the width repeat a column."""
    step = vectors * LANES
    for j in range(vectors):
        lanes = min(LANES, width - j * LANES)
        columns, goal = source + j * LANES * column * FLOAT, target + j * LANES * FLOAT
        whole = depth - depth % LANES
        for k in range(0, whole, LANES):
            transpose_block(columns + k * FLOAT, lanes - 1, column, goal + k * step * FLOAT, step)
        if whole < depth and whole > 0:
            k = depth - LANES  # overlaps the block before, and writes the same values again
            transpose_block(columns + k * FLOAT, lanes - 1, column, goal + k * step * FLOAT, step)
        elif whole < depth:
            for k in range(depth):
                for i in range(LANES):
                    value = load32(columns, min(i, lanes - 1) * column + k)
                    store32(goal, k * step + i, value)


@routine()
def empty_chains(c: int, c_row: int, bias: int, m: int, n: int) -> None:
    """What fresh chains of no elements are: +0, then the bias added."""
    for i in range(m):
        for j in range(n):
            store32(c, i * c_row + j, ZERO + load32(bias, j) if bias else ZERO)


@routine()
def panel_span(panel: int, panels: int, n: int) -> tuple[int, int, int]:
    """First column, number of columns and of vectors of a panel; n columns are shared out evenly by vectors."""
    total = (n + LANES - 1) // LANES
    begin, end = panel * total // panels, (panel + 1) * total // panels
    return begin * LANES, min(end * LANES, n) - begin * LANES, end - begin


@routine()
def is_packed(m: int, width: int, b_column: int) -> bool:
    """Whether the tiles read a packed copy of this panel of B, not B itself."""
    return b_column != 1 or m > IN_PLACE or width % LANES != 0


@routine()
def pack_block(
    b: int, b_step: int, b_column: int, m: int, n: int, depth: int, first: int, last: int, panels: int, target: int
) -> None:
    """Panels first..last of B, each k-major, into `target`, as far as they are not read in place."""
    few = TOGETHER if b_column == 1 else depth
    for k in range(0, depth, few):  # rows of B are read along, some at a time, across all panels
        for p in range(first, last):
            j, width, vectors = panel_span(p, panels, n)
            if is_packed(m, width, b_column):
                panel, step = b + (k * b_step + j * b_column) * FLOAT, vectors * LANES
                goal = target + ((p - first) * DEPTH * WIDTH + k * step) * FLOAT
                if b_column == 1:
                    copy_rows(panel, b_step, width, min(few, depth - k), goal, step)
                else:
                    pack_columns(panel, b_column, width, vectors, depth, goal)


@kernel("void(" + ", ".join(["intp"] * 13) + ")")
def panel_product(
    a: int, a_row: int, a_step: int, b: int, b_step: int, c: int, c_row: int, bias: int,
    m: int, depth: int, vectors: int, lanes: int, fresh: int,
) -> None:  # fmt: skip
    """All rows of A against one panel of B, in tiles of nearly equal height. See `tile` for the arguments."""
    tiles = (m + ROWS - 1) // ROWS
    for t in range(tiles):
        i = t * m // tiles
        rows = (t + 1) * m // tiles - i
        here = c + i * c_row * FLOAT
        tile(a + i * a_row * FLOAT, a_row, a_step, b, b_step, here, c_row, bias, depth, rows, vectors, lanes, fresh)


@routine()
def gather_rows(
    a: int, a_row: int, a_step: int, rows: int, depth: int, panels: int, target: int
) -> tuple[int, int, int]:
    """Address and strides of a block of A: copied together where that is worth it, else where it lies."""
    if panels < FEW_PANELS or depth <= SHALLOW or rows < ROWS:
        return a, a_row, a_step
    if a_step == 1 and a_row > FAR:
        copy_rows(a, a_row, depth, rows, target, A_ROW)
        return target, A_ROW, 1
    if a_row == 1 and a_step > FAR:
        copy_rows(a, a_step, rows, depth, target, A_STEP)
        return target, 1, A_STEP
    return a, a_row, a_step


@routine()
def sweep_block(
    a: int, a_row: int, a_step: int, b: int, b_step: int, b_column: int, c: int, c_row: int,
    bias: int, bias_column: int, m: int, n: int, depth: int, first: int, last: int, panels: int, fresh: int,
    scratch: int, panel_address: int,
) -> None:  # fmt: skip
    """All rows of A against panels first..last of B."""
    block = ROWS if depth <= SHALLOW else BLOCK
    for i in range(0, m, block):
        rows = min(block, m - i)
        line = a + i * a_row * FLOAT
        line, row, step = gather_rows(line, a_row, a_step, rows, depth, last - first, scratch + A_AT * FLOAT)
        for p in range(first, last):
            j, width, vectors = panel_span(p, panels, n)
            panel, across = b + j * FLOAT, b_step
            if is_packed(m, width, b_column):
                panel, across = scratch + (p - first) * DEPTH * WIDTH * FLOAT, vectors * LANES
            arguments = (
                line, row, step, panel, across, c + (i * c_row + j) * FLOAT, c_row,
                bias + j * bias_column * FLOAT, rows, depth, vectors, width - (vectors - 1) * LANES, fresh,
            )  # fmt: skip
            call_kernel(panel_address, arguments)


@routine()
def product(
    a: int, a_row: int, a_step: int, b: int, b_step: int, b_column: int, c: int, c_row: int, bias: int,
    m: int, n: int, k: int, fresh: int, scratch: int, panel_address: int,
) -> None:  # fmt: skip
    """C[m, n] = chains over k of A[m, k] * B[k, n], from +0 if fresh, else from C; then + bias[n] unless bias is 0."""
    if m == 0 or n == 0:
        return
    if k == 0 and fresh:
        empty_chains(c, c_row, bias, m, n)
    neutral = scratch + NEUTRAL_AT * FLOAT
    for j in range(WIDTH):
        store32(neutral, j, MINUS_ZERO)
    panels = (n + WIDTH - 1) // WIDTH
    blocks = (k + DEPTH - 1) // DEPTH
    block = (k // max(blocks, 1) + LANES) // LANES * LANES if blocks > 1 else DEPTH  # nearly equal ones
    for k0 in range(0, k, block):
        depth = min(block, k - k0)
        a_block, b_block = a + k0 * a_step * FLOAT, b + k0 * b_step * FLOAT
        addend, addend_column = (bias, 1) if bias != 0 and k0 + depth == k else (neutral, 0)
        for first in range(0, panels, PANELS):
            last = min(first + PANELS, panels)
            pack_block(b_block, b_step, b_column, m, n, depth, first, last, panels, scratch)
            sweep_block(
                a_block, a_row, a_step, b_block, b_step, b_column, c, c_row, addend, addend_column,
                m, n, depth, first, last, panels, fresh if k0 == 0 else 0, scratch, panel_address,
            )  # fmt: skip


@kernel("void(" + ", ".join(["intp"] * 19) + ")")
def gemm(
    a: int, a_batch: int, a_row: int, a_step: int, b: int, b_batch: int, b_step: int, b_column: int,
    c: int, c_batch: int, c_row: int, bias: int, batches: int, m: int, n: int, k: int, fresh: int,
    scratch: int, panel_address: int,
) -> None:  # fmt: skip
    """`product` for each of `batches` operands that lie a_batch, b_batch and c_batch floats apart.

    scratch: SCRATCH_FLOATS floats, aligned to a cache line. panel_address: panel_product.address().
    """
    for i in range(batches):
        product(
            a + i * a_batch * FLOAT, a_row, a_step, b + i * b_batch * FLOAT, b_step, b_column,
            c + i * c_batch * FLOAT, c_row, bias, m, n, k, fresh, scratch, panel_address,
        )  # fmt: skip
