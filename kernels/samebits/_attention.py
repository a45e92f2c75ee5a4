"""The compiled core of attention: for each head, products of matrices around a softmax, forward and backward.

Causal attention has no masked terms, rather than terms of zero: its chains end (or begin) at the diagonal. A block of
rows shares a product up to where all its chains run; what is left of each row follows alone, continuing its chain.
In sums of probabilities a masked place may hold the identity: -0 in a sum, (+0, -0) in a product.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from samebits._chains import PANEL_FLOATS, clear, row_maximum, row_products, row_sums
from samebits._compile import kernel, routine
from samebits._elementary import exp32
from samebits._gemm import FLOAT, SCRATCH_FLOATS
from samebits._intrinsics import call_kernel, fma32, load32, load_i64, store32
from samebits._vectors import LANES, ROWS

ZERO: Any = np.float32(0.0)
MINUS_ZERO: Any = np.float32(-0.0)
TABLE = ("heads", "rows", "keys", "width", "causal", "p", "p_step", "gemm", "panel_product")
OPERANDS = ("q", "k", "v", "out", "grad", "grad_q", "grad_k", "grad_v", "mask")
OPERAND_FIELDS = 5  # address; floats from batch to batch, head to head, row to row; query heads that share one head
HEADS, NUM_ROWS, KEYS, WIDTH, CAUSAL, P, P_STEP, GEMM, PANEL = range(len(TABLE))
Q, K, V, OUT, GRAD, GRAD_Q, GRAD_K, GRAD_V, MASK = range(len(OPERANDS))
PANELS_AT = SCRATCH_FLOATS
CHAINS_AT = PANELS_AT + 2 * PANEL_FLOATS
SQUARE_AT = CHAINS_AT + LANES
"""In scratch memory: what the products need, two panels, a vector of chains, and then a [rows, keys] matrix."""


@routine()
def operand(table: int, which: int, unit: int) -> tuple[int, int]:
    """Address of a head's first row, and floats from row to row. unit = batch * heads + query head."""
    heads, at = load_i64(table, HEADS), len(TABLE) + which * OPERAND_FIELDS
    head = unit % heads // load_i64(table, at + 4)
    offset = unit // heads * load_i64(table, at + 1) + head * load_i64(table, at + 2)
    return load_i64(table, at) + offset * FLOAT, load_i64(table, at + 3)


@routine()
def chains(
    table: int, scratch: int, a: int, a_row: int, a_step: int, b: int, b_step: int, b_column: int, c: int, c_row: int,
    m: int, n: int, k: int, fresh: int,
) -> None:  # fmt: skip
    """C[m, n] = A[m, k] @ B[k, n], by the product that the table names."""
    call_kernel(
        load_i64(table, GEMM),
        (a, 0, a_row, a_step, b, 0, b_step, b_column, c, 0, c_row, 0, 1, m, n, k, fresh, scratch,
         load_i64(table, PANEL)),
    )  # fmt: skip


@routine()
def first_of_group(table: int, unit: int) -> Any:
    """Whether a query head is the first of those that share keys, so that their gradients begin with it."""
    return unit % load_i64(table, len(TABLE) + K * OPERAND_FIELDS + 4) == 0


@routine()
def add_multiple(factor: float, x: int, y: int, width: int) -> None:
    """One step of `width` chains: y = fma(factor, x, y)."""
    for d in range(width):
        store32(y, d, fma32(factor, load32(x, d), load32(y, d)))


@routine()
def over_keys(table: int, scratch: int, p: int, b: int, b_row: int, c: int, c_row: int) -> None:
    """C[i] = chain over the present keys j of P[i, j] * B[j]."""
    rows, keys, width = load_i64(table, NUM_ROWS), load_i64(table, KEYS), load_i64(table, WIDTH)
    if not load_i64(table, CAUSAL):
        chains(table, scratch, p, keys, 1, b, b_row, 1, c, c_row, rows, width, keys, 1)
        return
    for first in range(0, rows, ROWS):
        height, shared = min(ROWS, rows - first), min(first + 1, keys)
        line, goal = p + first * keys * FLOAT, c + first * c_row * FLOAT
        chains(table, scratch, line, keys, 1, b, b_row, 1, goal, c_row, height, width, shared, 1)
        for i in range(1, height):
            for j in range(shared, min(first + i + 1, keys)):
                add_multiple(load32(line, i * keys + j), b + j * b_row * FLOAT, goal + i * c_row * FLOAT, width)


@routine()
def over_rows(table: int, scratch: int, p: int, b: int, b_row: int, c: int, c_row: int, fresh: int) -> None:
    """C[j] = chain over the rows i that see key j of P[i, j] * B[i], from +0 if fresh."""
    rows, keys, width = load_i64(table, NUM_ROWS), load_i64(table, KEYS), load_i64(table, WIDTH)
    if not load_i64(table, CAUSAL):
        chains(table, scratch, p, 1, keys, b, b_row, 1, c, c_row, keys, width, rows, fresh)
        return
    for first in range(0, keys, ROWS):
        end = min(first + ROWS, keys)
        for j in range(first, end):
            goal = c + j * c_row * FLOAT
            if fresh:
                clear(goal, width)
            for i in range(j, min(end, rows)):
                add_multiple(load32(p, i * keys + j), b + i * b_row * FLOAT, goal, width)
        if end < rows:
            shared, start = p + (end * keys + first) * FLOAT, b + end * b_row * FLOAT
            goal = c + first * c_row * FLOAT
            chains(table, scratch, shared, 1, keys, start, b_row, 1, goal, c_row, end - first, width, rows - end, 0)


@routine()
def exponentials(x: int, num_rows: int, keys: int, present: int) -> None:
    """x = exp(x) in the first `present` of `keys` columns; masked places among them do no harm."""
    if present == keys:
        for j in range(num_rows * keys):  # one long loop, since rows may be short
            store32(x, j, exp32(load32(x, j)))
        return
    for i in range(num_rows):
        for j in range(i * keys, i * keys + present):
            store32(x, j, exp32(load32(x, j)))


@routine()
def softmax_rows(
    p: int, first: int, num_rows: int, keys: int, present: int, causal: int, scale: float, scratch: int
) -> None:
    """p = softmax(p * scale) for at most LANES rows from `first` on, of which `present` columns take part at most."""
    start, sums = p + first * keys * FLOAT, scratch + CHAINS_AT * FLOAT
    for i in range(num_rows):
        line, count = start + i * keys * FLOAT, min(first + i + 1, keys) if causal else present
        for j in range(count):
            store32(line, j, load32(line, j) * scale)
        m = row_maximum(line, count)
        for j in range(count):
            store32(line, j, load32(line, j) - m)
    exponentials(start, num_rows, keys, present)
    for i in range(num_rows if causal else 0):
        for j in range(first + i + 1, present):
            store32(start, i * keys + j, MINUS_ZERO)
    clear(sums, LANES)
    row_sums(start, keys, num_rows, present, scratch + PANELS_AT * FLOAT, sums)
    for i in range(num_rows):
        line, count = start + i * keys * FLOAT, min(first + i + 1, keys) if causal else present
        s = load32(sums, i)
        for j in range(count):
            store32(line, j, load32(line, j) / s)
        for j in range(count, present):
            store32(line, j, ZERO)


@kernel("void(intp, float32, intp, intp, intp)", binary64=True)
def forward(table: int, scale: float, scratch: int, begin: int, end: int) -> None:
    """Heads begin..end of the table's operands: out from q, k and v; the probabilities in p, or dropped."""
    rows, keys, width = load_i64(table, NUM_ROWS), load_i64(table, KEYS), load_i64(table, WIDTH)
    causal, p_step = load_i64(table, CAUSAL), load_i64(table, P_STEP)
    for unit in range(begin, end):
        q, q_row = operand(table, Q, unit)
        k, k_row = operand(table, K, unit)
        v, v_row = operand(table, V, unit)
        out, out_row = operand(table, OUT, unit)
        p = load_i64(table, P) + unit * p_step * FLOAT if p_step else scratch + SQUARE_AT * FLOAT
        height = 4 * LANES if causal else max(rows, 1)
        for first in range(0, rows if keys else 0, height):
            last = min(first + height, rows)
            present = min(last, keys) if causal else keys
            goal = p + first * keys * FLOAT
            chains(
                table, scratch, q + first * q_row * FLOAT, q_row, 1, k, 1, k_row, goal, keys,
                last - first, present, width, 1,
            )  # fmt: skip
            for i in range(first, last, LANES):
                group = min(LANES, last - i)
                softmax_rows(p, i, group, keys, min(i + group, keys) if causal else keys, causal, scale, scratch)
        over_keys(table, scratch, p, v, v_row, out, out_row)


@routine()
def score_gradients(p: int, dp: int, num_rows: int, first: int, keys: int, causal: int, scratch: int) -> None:
    """dp = p * (dp - D) * scale for at most LANES rows, D = chain over present keys of fma(p, dp)."""
    start, present = first * keys * FLOAT, min(first + num_rows, keys) if causal else keys
    for i in range(num_rows if causal else 0):
        for j in range(first + i + 1, present):
            store32(dp + start, i * keys + j, MINUS_ZERO)
    sums = scratch + CHAINS_AT * FLOAT
    clear(sums, LANES)
    row_products(p + start, dp + start, keys, num_rows, present, scratch + PANELS_AT * FLOAT, sums)


@routine()
def scaled_differences(
    p: int, dp: int, num_rows: int, first: int, keys: int, causal: int, scale: float, sums: int
) -> None:
    """dp = (p * (dp - sum)) * scale where present."""
    for i in range(num_rows):
        line, d = (first + i) * keys * FLOAT, load32(sums, i)
        for j in range(min(first + i + 1, keys) if causal else keys):
            store32(dp + line, j, load32(p + line, j) * (load32(dp + line, j) - d) * scale)


@kernel("void(intp, float32, intp, intp, intp)")
def backward(table: int, scale: float, scratch: int, begin: int, end: int) -> None:
    """Heads begin..end: grad_q, grad_k and grad_v from grad, q, k, v and p."""
    rows, keys, width = load_i64(table, NUM_ROWS), load_i64(table, KEYS), load_i64(table, WIDTH)
    causal = load_i64(table, CAUSAL)
    dp, sums = scratch + SQUARE_AT * FLOAT, scratch + CHAINS_AT * FLOAT
    for unit in range(begin, end):
        q, q_row = operand(table, Q, unit)
        k, k_row = operand(table, K, unit)
        v, v_row = operand(table, V, unit)
        grad, grad_row = operand(table, GRAD, unit)
        p = load_i64(table, P) + unit * load_i64(table, P_STEP) * FLOAT
        grad_q, grad_q_row = operand(table, GRAD_Q, unit)
        grad_k, grad_k_row = operand(table, GRAD_K, unit)
        grad_v, grad_v_row = operand(table, GRAD_V, unit)
        fresh = 1 if first_of_group(table, unit) else 0
        over_rows(table, scratch, p, grad, grad_row, grad_v, grad_v_row, fresh)
        height = 4 * LANES if causal else max(rows, 1)
        for first in range(0, rows if keys else 0, height):
            last = min(first + height, rows)
            chains(
                table, scratch, grad + first * grad_row * FLOAT, grad_row, 1, v, 1, v_row,
                dp + first * keys * FLOAT, keys, last - first, min(last, keys) if causal else keys, width, 1,
            )  # fmt: skip
            for i in range(first, last, LANES):
                group = min(LANES, last - i)
                score_gradients(p, dp, group, i, keys, causal, scratch)
                scaled_differences(p, dp, group, i, keys, causal, scale, sums)
        over_keys(table, scratch, dp, k, k_row, grad_q, grad_q_row)
        over_rows(table, scratch, dp, q, q_row, grad_k, grad_k_row, fresh)
