"""The core of attention with a mask: any key may be absent from any row, so chains skip key by key.

Scores and dp hold a value for every pair of row and key, absent ones too; no chain reads those of absent pairs. In sums
along a row they hold the identity: -0 in a sum, (+0, -0) in a product.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from samebits._attention import (
    CHAINS_AT,
    GRAD,
    GRAD_K,
    GRAD_Q,
    GRAD_V,
    KEYS,
    MASK,
    MINUS_ZERO,
    NUM_ROWS,
    OUT,
    P_STEP,
    PANELS_AT,
    SQUARE_AT,
    WIDTH,
    ZERO,
    K,
    P,
    Q,
    V,
    add_multiple,
    chains,
    exponentials,
    first_of_group,
    operand,
)  # fmt: skip
from samebits._chains import clear, row_maximum, row_products, row_sums
from samebits._compile import kernel, routine
from samebits._gemm import FLOAT
from samebits._intrinsics import load32, load_i64, store32
from samebits._vectors import LANES

MINUS_INFINITY: Any = np.float32(-np.inf)


@routine()
def fill_absent(x: int, mask: int, mask_row: int, num_rows: int, keys: int, value: float) -> None:
    """x = value where the mask, binary32 like x, holds 0."""
    for i in range(num_rows):
        for j in range(keys):
            taken = load32(mask, i * mask_row + j) != ZERO
            store32(x, i * keys + j, load32(x, i * keys + j) if taken else value)


@routine()
def masked_softmax(
    p: int, mask: int, mask_row: int, num_rows: int, keys: int, scale: float, scratch: int
) -> None:  # fmt: skip
    """p = softmax(p * scale) over the present keys of at most LANES rows; +0 for absent ones."""
    sums = scratch + CHAINS_AT * FLOAT
    for j in range(num_rows * keys):
        store32(p, j, load32(p, j) * scale)
    fill_absent(p, mask, mask_row, num_rows, keys, MINUS_INFINITY)  # which is never the maximum of present ones
    for i in range(num_rows):
        m = row_maximum(p + i * keys * FLOAT, keys)
        for j in range(i * keys, i * keys + keys):
            store32(p, j, load32(p, j) - m)
    exponentials(p, num_rows, keys, keys)
    fill_absent(p, mask, mask_row, num_rows, keys, MINUS_ZERO)
    clear(sums, LANES)
    row_sums(p, keys, num_rows, keys, scratch + PANELS_AT * FLOAT, sums)
    for i in range(num_rows):
        s = load32(sums, i)
        for j in range(i * keys, i * keys + keys):
            store32(p, j, load32(p, j) / s)
    fill_absent(p, mask, mask_row, num_rows, keys, ZERO)


@routine()
def by_keys(table: int, p: int, mask: int, mask_row: int, b: int, b_row: int, c: int, c_row: int) -> None:
    """C[i] = chain over the present keys j of P[i, j] * B[j]."""
    rows, keys, width = load_i64(table, NUM_ROWS), load_i64(table, KEYS), load_i64(table, WIDTH)
    for i in range(rows):
        clear(c + i * c_row * FLOAT, width)
        for j in range(keys):
            if load32(mask, i * mask_row + j) != ZERO:
                add_multiple(load32(p, i * keys + j), b + j * b_row * FLOAT, c + i * c_row * FLOAT, width)


@routine()
def by_rows(
    table: int, p: int, mask: int, mask_row: int, b: int, b_row: int, c: int, c_row: int, fresh: int
) -> None:  # fmt: skip
    """C[j] = chain over the rows i that see key j of P[i, j] * B[i], from +0 if fresh."""
    rows, keys, width = load_i64(table, NUM_ROWS), load_i64(table, KEYS), load_i64(table, WIDTH)
    for j in range(keys if fresh else 0):
        clear(c + j * c_row * FLOAT, width)
    for i in range(rows):
        for j in range(keys):
            if load32(mask, i * mask_row + j) != ZERO:
                add_multiple(load32(p, i * keys + j), b + i * b_row * FLOAT, c + j * c_row * FLOAT, width)


@kernel("void(intp, float32, intp, intp, intp)", binary64=True)
def forward(table: int, scale: float, scratch: int, begin: int, end: int) -> None:
    """Query heads begin..end of the table's operands: out from q, k, v and mask; p keeps probabilities."""
    rows, keys, width = load_i64(table, NUM_ROWS), load_i64(table, KEYS), load_i64(table, WIDTH)
    p_step = load_i64(table, P_STEP)
    for unit in range(begin, end):
        q, q_row = operand(table, Q, unit)
        k, k_row = operand(table, K, unit)
        v, v_row = operand(table, V, unit)
        out, out_row = operand(table, OUT, unit)
        mask, mask_row = operand(table, MASK, unit)
        p = load_i64(table, P) + unit * p_step * FLOAT if p_step else scratch + SQUARE_AT * FLOAT
        chains(table, scratch, q, q_row, 1, k, 1, k_row, p, keys, rows, keys, width, 1)
        for i in range(0, rows if keys else 0, LANES):
            line, here = p + i * keys * FLOAT, mask + i * mask_row * FLOAT
            masked_softmax(line, here, mask_row, min(LANES, rows - i), keys, scale, scratch)
        by_keys(table, p, mask, mask_row, v, v_row, out, out_row)


@routine()
def score_gradients(table: int, p: int, dp: int, mask: int, mask_row: int, scale: float, scratch: int) -> None:
    """dp = p * (dp - D) * scale, D = chain over present keys of fma(p, dp)."""
    rows, keys, sums = load_i64(table, NUM_ROWS), load_i64(table, KEYS), scratch + CHAINS_AT * FLOAT
    fill_absent(dp, mask, mask_row, rows, keys, MINUS_ZERO)
    for first in range(0, rows if keys else 0, LANES):
        num_rows, start = min(LANES, rows - first), first * keys * FLOAT
        clear(sums, LANES)
        row_products(p + start, dp + start, keys, num_rows, keys, scratch + PANELS_AT * FLOAT, sums)
        for i in range(num_rows):
            line, d = start + i * keys * FLOAT, load32(sums, i)
            for j in range(keys):
                store32(dp + line, j, load32(p + line, j) * (load32(dp + line, j) - d) * scale)


@kernel("void(intp, float32, intp, intp, intp)")
def backward(table: int, scale: float, scratch: int, begin: int, end: int) -> None:
    """Query heads begin..end: grad_q, grad_k and grad_v from grad, q, k, v, mask and p."""
    rows, keys, width = load_i64(table, NUM_ROWS), load_i64(table, KEYS), load_i64(table, WIDTH)
    dp = scratch + SQUARE_AT * FLOAT
    for unit in range(begin, end):
        q, q_row = operand(table, Q, unit)
        k, k_row = operand(table, K, unit)
        v, v_row = operand(table, V, unit)
        mask, mask_row = operand(table, MASK, unit)
        grad, grad_row = operand(table, GRAD, unit)
        grad_q, grad_q_row = operand(table, GRAD_Q, unit)
        grad_k, grad_k_row = operand(table, GRAD_K, unit)
        grad_v, grad_v_row = operand(table, GRAD_V, unit)
        p = load_i64(table, P) + unit * load_i64(table, P_STEP) * FLOAT
        fresh = 1 if first_of_group(table, unit) else 0
        by_rows(table, p, mask, mask_row, grad, grad_row, grad_v, grad_v_row, fresh)
        chains(table, scratch, grad, grad_row, 1, v, 1, v_row, dp, keys, rows, keys, width, 1)
        score_gradients(table, p, dp, mask, mask_row, scale, scratch)
        by_keys(table, dp, mask, mask_row, k, k_row, grad_q, grad_q_row)
        by_rows(table, dp, mask, mask_row, q, q_row, grad_k, grad_k_row, fresh)
