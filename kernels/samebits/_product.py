"""Matrix products of tensors: from strided operands to calls of the compiled product, shared out among threads."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from samebits._compile import kernel
from samebits._gemm import FLOAT, SCRATCH_FLOATS, WIDTH, gemm, panel_product
from samebits._intrinsics import load32, store32
from samebits._slim import STRIP_ROWS, TURNED_ROWS, WIDEST, by_columns, by_strips, strip_vectors
from samebits._split import split
from samebits._threads import WORTH_SHARING, Call, get_num_threads, run, scratch, shares
from samebits._vectors import LANES

WORTH_THREADS = WORTH_SHARING
TOUCH = 8  # multiply-adds that take as long as an element of B or C to come from memory, or go there
FEW = 16  # terms of a chain up to which writing C is most of the work
_WIDTHS = [WIDEST, *(strip_vectors(m) * LANES for m in range(1, STRIP_ROWS + 1))]
_NEUTRAL = np.array([-0.0] * WIDEST, dtype=np.float32)
NEUTRAL = _NEUTRAL.ctypes.data  # the address of a bias that changes nothing


def multiply(a: Tensor, b: Tensor, out: Tensor, *, bias: Tensor | None = None, fresh: bool = True) -> None:
    """out[m, n] = chains over k of a[m, k] * b[k, n], from +0 if fresh, else from out; then + bias[n].

    Each of a, b and out is one matrix, or an equal number of them along a first axis. Any strides for a and b (those
    of b that fit no loading pattern are copied); out and bias are contiguous.
    """
    if out.dim() == 2:
        (m, k), n = a.shape, b.shape[1]
        batches, a_next, b_next = 1, 0, 0
        a_row, a_step = a.stride()
        b_step, b_column = b.stride()
    else:
        (batches, m, k), n = a.shape, b.shape[2]
        a_next, a_row, a_step = a.stride()
        b_next, b_step, b_column = b.stride()
    if b_column != 1 and b_step != 1:
        b = b.contiguous()
        b_next, b_step, b_column = k * n, n, 1  # torch leaves any stride to a dimension of size 0 or 1
    arguments = (
        a.data_ptr(), a_next, a_row, a_step, b.data_ptr(), b_next, b_step, b_column,
        out.data_ptr(), m * n, n, 0 if bias is None else bias.data_ptr(), batches, m, n, k, fresh,
    )  # fmt: skip
    if get_num_threads() == 1 or batches * n * (m * k + TOUCH * (m + k)) < WORTH_THREADS:
        chosen, operands = choose(0, *arguments)
        chosen(*operands)
    else:
        run([choose(i, *part) for i, part in enumerate(_parts(*arguments))])


def choose(
    call: int, a: int, a_batch: int, a_row: int, a_step: int, b: int, b_batch: int, b_step: int, b_column: int,
    c: int, c_batch: int, c_row: int, bias: int, batches: int, m: int, n: int, k: int, fresh: int,
) -> Call:  # fmt: skip
    """Part `call` of a product, by the kernel that suits its shape.

    a[i, k] lies at a + i*a_row + k*a_step, b[k, j] at b + k*b_step + j*b_column, and so on.
    """
    if batches == 1 and b_column == 1 and m > 0 and k > 0 and n % strip_width(m) == 0 and (m <= STRIP_ROWS or k <= FEW):
        height = m if m <= STRIP_ROWS else 2
        return by_strips, (a, a_row, a_step, b, b_step, c, c_row, bias, NEUTRAL, m, n, k, fresh, height)
    if batches == 1 and b_column != 1 and a_step == 1 and 0 < m <= TURNED_ROWS:
        return by_columns, (a, a_row, b, b_column, c, c_row, bias, NEUTRAL, m, n, k, fresh)
    return gemm, (
        a, a_batch, a_row, a_step, b, b_batch, b_step, b_column, c, c_batch, c_row, bias, batches, m, n, k, fresh,
        scratch(SCRATCH_FLOATS, call), panel_product.address(),
    )  # fmt: skip


def _parts(
    a: int, a_batch: int, a_row: int, a_step: int, b: int, b_batch: int, b_step: int, b_column: int,
    c: int, c_batch: int, c_row: int, bias: int, batches: int, m: int, n: int, k: int, fresh: int,
) -> list[tuple[int, ...]]:  # fmt: skip
    """The product cut along its outputs: by batches if there are enough, else by the longer of columns and rows.

    Where writing C is most of the work, by rows: each thread then writes whole pages.
    """
    if batches >= get_num_threads():
        return [
            (
                a + i * a_batch * FLOAT, a_batch, a_row, a_step, b + i * b_batch * FLOAT, b_batch, b_step, b_column,
                c + i * c_batch * FLOAT, c_batch, c_row, bias, end - i, m, n, k, fresh,
            ) for i, end in shares(batches, 1)
        ]  # fmt: skip
    if n > m and (m <= STRIP_ROWS or k > FEW):
        width = strip_width(m) if m <= STRIP_ROWS else WIDTH
        return [
            (
                a, a_batch, a_row, a_step, b + j * b_column * FLOAT, b_batch, b_step, b_column,
                c + j * FLOAT, c_batch, c_row, bias and bias + j * FLOAT, batches, m, end - j, k, fresh,
            ) for j, end in shares(n, width if b_column == 1 and n % width == 0 else WIDTH)
        ]  # fmt: skip
    return [
        (
            a + i * a_row * FLOAT, a_batch, a_row, a_step, b, b_batch, b_step, b_column,
            c + i * c_row * FLOAT, c_batch, c_row, bias, batches, end - i, n, k, fresh,
        ) for i, end in shares(m, 8)
    ]  # fmt: skip


def strip_width(m: int) -> int:
    """Columns in multiples of which `by_strips` takes so many rows; more than STRIP_ROWS go two by two."""
    return _WIDTHS[m] if m <= STRIP_ROWS else WIDEST


@kernel("void(intp, intp, intp, intp, intp, intp)")
def _column_sums(x: int, row: int, rows: int, total: int, begin: int, end: int) -> None:
    """total[j] = total[j] + x[i, j] for ascending i; four rows at a time, so that the chains are stored less often."""
    step = row * FLOAT
    for i in range(0, rows - 3, 4):
        line = x + i * step
        for j in range(begin, end):
            chain = (load32(total, j) + load32(line, j)) + load32(line + step, j)
            store32(total, j, (chain + load32(line + 2 * step, j)) + load32(line + 3 * step, j))
    for i in range(rows - rows % 4, rows):
        for j in range(begin, end):
            store32(total, j, load32(total, j) + load32(x, i * row + j))


def add_rows(x: Tensor, total: Tensor) -> None:
    """total[j] = total[j] + x[i, j], rows i ascending, for x of shape [rows, columns]."""
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, columns = x.shape
    split(_column_sums, columns, rows, x.data_ptr(), x.stride(0), rows, total.data_ptr())
