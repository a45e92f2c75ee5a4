"""Clipping of gradients by their norm, whole or in the two halves that a model cut over processes needs.

A model in one process calls `clip_grad_norm_`. Where each part of a model lies in a process of its own, every part
computes `square_sums` of its parameters, the parts' sums are put behind one another in the order of the uncut model,
`total_norm` of that is the norm of the whole, and every part calls `clip_grads_with_norm_` with it: the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._check import require, require_tensor, size
from samebits._compile import kernel
from samebits._intrinsics import fma32, load32, load_i64, store32
from samebits._split import split
from samebits.optim.optimizers import changed, with_gradients

ZERO = np.float32(0.0)
ONE: Any = np.float32(1.0)
EPS: Any = np.float32(1e-6)


@kernel("void(intp, intp, intp, intp, intp)")
def _square_sums(gradients: int, lengths: int, sums: int, begin: int, end: int) -> None:
    """sums[i] = chain of fma(g, g) over gradient i, whose address and length stand in tables."""
    for i in range(begin, end):
        gradient, acc = load_i64(gradients, i), ZERO
        for k in range(load_i64(lengths, i)):
            value = load32(gradient, k)
            acc = fma32(value, value, acc)
        store32(sums, i, acc)


@kernel("void(intp, intp, intp)")
def _norm(sums: int, count: int, norm: int) -> None:
    """norm[0] = sqrt of the ascending sum."""
    total = ZERO
    for i in range(count):
        total = total + load32(sums, i)
    store32(norm, 0, math.sqrt(total))


@kernel("void(intp, float32, intp, intp)")
def _scale(gradient: int, factor: float, begin: int, end: int) -> None:
    for k in range(begin, end):
        store32(gradient, k, load32(gradient, k) * factor)


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def square_sums(parameters: Tensor | Iterable[Tensor]) -> Tensor:
    """For each parameter that has a gradient, in the order given: chain over ascending flat position of fma(g, g), +0.

    Float32 [P]. Parameters without a gradient are absent.
    TypeError: not float32; RuntimeError: not in the CPU's memory.
    """
    gradients = [grad.contiguous() for _, grad in with_gradients("square_sums", _listed(parameters))]
    sums, count = torch.empty(len(gradients), dtype=torch.float32), len(gradients)
    addresses = np.array([grad.data_ptr() for grad in gradients], np.int64)
    lengths = np.array([grad.numel() for grad in gradients], np.int64)
    tables = (addresses.ctypes.data, lengths.ctypes.data, sums.data_ptr())
    split(_square_sums, count, int(lengths.max(initial=0)), *tables)
    return sums


def total_norm(sums: Tensor) -> Tensor:
    """sqrt(((+0 + sums[0]) + sums[1]) + ...) for float32 sums [P] in the order of the model; 0-dimensional.

    TypeError: not float32; ValueError: not one axis; RuntimeError: not in the CPU's memory.
    """
    require_tensor("total_norm", "sums", sums)
    require(sums.dim() == 1, "total_norm", f"sums must be [P], not {size(sums)}")
    sums, norm = sums.detach().contiguous(), torch.empty((), dtype=torch.float32)
    _norm(sums.data_ptr(), sums.shape[0], norm.data_ptr())
    return norm


def clip_grads_with_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, norm: Tensor) -> None:
    """Multiply every gradient by c = binary32(max_norm) / (norm + binary32(1e-6)), in place, unless c >= 1.

    A norm of NaN makes every gradient NaN, as torch's function does.
    TypeError: not float32; ValueError: max_norm is negative or NaN, norm not 0-dimensional; RuntimeError: not in the
    CPU's memory.
    """
    operator = "clip_grads_with_norm_"
    require(max_norm >= 0.0, operator, f"max_norm must be at least 0, not {max_norm}")
    require_tensor(operator, "norm", norm)
    require(norm.dim() == 0, operator, f"norm must be 0-dimensional, not {size(norm)}")
    with np.errstate(all="ignore"):
        factor = np.float32(max_norm) / (np.float32(norm.item()) + EPS)
    if factor >= ONE:
        return
    for _, grad in with_gradients(operator, _listed(parameters)):
        flat = grad.contiguous()
        split(_scale, flat.numel(), 1, flat.data_ptr(), factor)
        if flat is grad:
            changed(grad)
        else:
            grad.copy_(flat)


@torch.no_grad()
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
    """Scale the gradients in place so that their 2-norm is at most max_norm; returns the norm before, 0-dimensional.

    norm = total_norm(square_sums(parameters)): per parameter the chain over ascending flat position of fma(g, g) from
    +0; those summed in the order given, which has to be the model's; the root. Then as `clip_grads_with_norm_`.

    TypeError: not float32; ValueError: max_norm is negative or NaN; RuntimeError: not in the CPU's memory, or, with
    error_if_nonfinite, a norm that is infinite or NaN.
    """
    require(max_norm >= 0.0, "clip_grad_norm_", f"max_norm must be at least 0, not {max_norm}")
    whole = _listed(parameters)
    norm = total_norm(square_sums(whole))
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {norm.item()}, so they cannot be clipped")
    clip_grads_with_norm_(whole, max_norm, norm)
    return norm
