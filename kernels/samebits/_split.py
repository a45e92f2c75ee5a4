"""Hands ranges of a kernel's outputs to the threads, in shares worth a thread's while."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samebits._compile import Kernel
from samebits._threads import WORTH_SHARING, get_num_threads, run, scratch, shares
from samebits._vectors import LANES

GRAIN = WORTH_SHARING >> 6  # elements of a share at least; one takes as long as many multiply-adds


def split(kernel: Kernel, total: int, cost: int, *arguments: Any) -> None:
    """kernel(*arguments, begin, end) over ranges that make up 0..total; an output takes `cost` elements of work."""
    if get_num_threads() == 1 or total * cost <= GRAIN:
        kernel(*arguments, 0, total)
        return
    run([(kernel, (*arguments, *edges)) for edges in shares(total, -(-GRAIN // max(1, cost)))])


def split_rows(kernel: Kernel, rows: int, columns: int, num_floats: int, *arguments: Any) -> None:
    """kernel(*arguments, scratch, begin, end) over ranges of rows, in whole blocks of LANES rows.

    scratch is the address of num_floats floats that belong to the thread.
    """

    if get_num_threads() == 1 or rows * columns <= GRAIN:
        kernel(*arguments, scratch(num_floats), 0, rows)
        return
    ranges = shares(rows, -(-GRAIN // max(1, columns * LANES)) * LANES)
    run([(kernel, (*arguments, scratch(num_floats, i), *edges)) for i, edges in enumerate(ranges)])


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether torch would record an operation on these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False
