"""Hands ranges of a kernel's outputs to the threads, in shares worth a thread's while."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samebits._threads import get_num_threads, run, scratch, shares
from samebits._vectors import LANES

GRAIN = 1 << 18  # elements read or written: with fewer, waking a thread (about 0.1 ms) costs more than it saves


def split(kernel: Callable[..., Any], total: int, cost: int, *arguments: Any) -> None:
    """kernel(*arguments, begin, end) over ranges that make up 0..total; an output takes `cost` elements of work."""
    if get_num_threads() == 1 or total * cost <= GRAIN:
        kernel(*arguments, 0, total)
        return
    run([partial(kernel, *arguments, *edges) for edges in shares(total, -(-GRAIN // max(1, cost)))])


def split_rows(kernel: Callable[..., Any], rows: int, columns: int, num_floats: int, *arguments: Any) -> None:
    """kernel(*arguments, scratch, begin, end) over ranges of rows, in whole blocks of LANES rows.

    scratch is the address of num_floats floats that belong to the thread.
    """

    def job(begin: int, end: int) -> None:
        kernel(*arguments, scratch(num_floats), begin, end)

    if get_num_threads() == 1 or rows * columns <= GRAIN:
        job(0, rows)
        return
    run([partial(job, *edges) for edges in shares(rows, -(-GRAIN // max(1, columns * LANES)) * LANES)])


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether torch would record an operation on these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False
