"""Hands ranges of a kernel's outputs to the threads, in shares worth a thread's while."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samebits._threads import run, scratch, shares

GRAIN = 16384  # elements: with fewer, waking a thread costs more than it saves


def split(kernel: Callable[..., Any], total: int, grain: int, *arguments: Any) -> None:
    """kernel(*arguments, begin, end) over the ranges that make up 0..total, each beginning at a multiple of grain."""
    ranges = shares(total, grain)
    if len(ranges) == 1:
        kernel(*arguments, 0, total)
        return
    run([partial(kernel, *arguments, begin, end) for begin, end in ranges])


def split_with_scratch(kernel: Callable[..., Any], total: int, grain: int, num_floats: int, *arguments: Any) -> None:
    """kernel(*arguments, scratch, begin, end): as `split`, with so many floats of scratch memory for each thread."""

    def job(begin: int, end: int) -> None:
        kernel(*arguments, scratch(num_floats), begin, end)

    ranges = shares(total, grain)
    if len(ranges) == 1:
        job(0, total)
        return
    run([partial(job, begin, end) for begin, end in ranges])


def rows_per_share(columns: int, multiple: int) -> int:
    """The grain for rows of so many columns: at least GRAIN elements, in multiples of a block of rows."""
    return -(-GRAIN // max(1, columns * multiple)) * multiple


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether torch would record an operation on these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
