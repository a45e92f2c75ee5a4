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

from samebits._chains import FLOAT
from samebits._check import require, require_tensor, size
from samebits._compile import inlined, kernel
from samebits._intrinsics import fma32, load32, load_i64, store32
from samebits._split import split
from samebits._threads import get_num_threads
from samebits.optim.optimizers import changed, with_gradients

ZERO = np.float32(0.0)
ONE: Any = np.float32(1.0)
EPS: Any = np.float32(1e-6)


CHAINS = 8  # side by side, so that the next fused multiply-add need not wait for the one before
SEGMENT = 2 * CHAINS + 1  # int64 of a segment: addresses of gradients, places of chains, and how many elements


@inlined()
def _squared(gradient: int, k: int, chain: Any) -> Any:
    return fma32(load32(gradient, k), load32(gradient, k), chain)


@kernel("void(intp, intp, intp, intp, intp)")
def _square_sums(segments: int, edges: int, sums: int, begin: int, end: int) -> None:
    """Continue the chains sums[place] = fma(g, g, sums[place]) by the segments of lists begin..end."""
    for s in range(load_i64(edges, begin), load_i64(edges, end)):
        at = s * SEGMENT
        g0, p0 = load_i64(segments, at + 0), load_i64(segments, at + 8)
        g1, p1 = load_i64(segments, at + 1), load_i64(segments, at + 9)
        g2, p2 = load_i64(segments, at + 2), load_i64(segments, at + 10)
        g3, p3 = load_i64(segments, at + 3), load_i64(segments, at + 11)
        g4, p4 = load_i64(segments, at + 4), load_i64(segments, at + 12)
        g5, p5 = load_i64(segments, at + 5), load_i64(segments, at + 13)
        g6, p6 = load_i64(segments, at + 6), load_i64(segments, at + 14)
        g7, p7 = load_i64(segments, at + 7), load_i64(segments, at + 15)
        s0 = load32(sums, p0)
        s1 = load32(sums, p1)
        s2 = load32(sums, p2)
        s3 = load32(sums, p3)
        s4 = load32(sums, p4)
        s5 = load32(sums, p5)
        s6 = load32(sums, p6)
        s7 = load32(sums, p7)
        for k in range(load_i64(segments, at + 2 * CHAINS)):
            s0 = _squared(g0, k, s0)
            s1 = _squared(g1, k, s1)
            s2 = _squared(g2, k, s2)
            s3 = _squared(g3, k, s3)
            s4 = _squared(g4, k, s4)
            s5 = _squared(g5, k, s5)
            s6 = _squared(g6, k, s6)
            s7 = _squared(g7, k, s7)
        store32(sums, p0, s0)
        store32(sums, p1, s1)
        store32(sums, p2, s2)
        store32(sums, p3, s3)
        store32(sums, p4, s4)
        store32(sums, p5, s5)
        store32(sums, p6, s6)
        store32(sums, p7, s7)


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
    count = len(gradients)
    sums = torch.zeros(count + CHAINS, dtype=torch.float32)  # what follows the last is for chains that nobody wants
    lists = [_segments(gradients, part) for part in _shared_out([grad.numel() for grad in gradients])]
    edges = [0]
    for rows in lists:
        edges.append(edges[-1] + len(rows))
    table = np.array([row for rows in lists for row in rows], np.int64)
    bounds = np.array(edges, np.int64)
    size_of_each = max((grad.numel() for grad in gradients), default=0)
    split(_square_sums, len(lists), size_of_each, table.ctypes.data, bounds.ctypes.data, sums.data_ptr())
    return sums[:count].clone()


def _shared_out(lengths: list[int]) -> list[list[int]]:
    """The gradients for each thread: longest first, each to the thread that has least so far."""
    parts: list[list[int]] = [[] for _ in range(get_num_threads())]
    loads = [0] * len(parts)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        lightest = loads.index(min(loads))
        loads[lightest] += lengths[i]
        parts[lightest].append(i)
    return parts


def _segments(gradients: list[Tensor], part: list[int]) -> list[list[int]]:
    """Rows for `_square_sums`: CHAINS gradients at a time, as far as the shortest goes, then the next in its place."""
    waiting = [[gradients[i].data_ptr(), i, gradients[i].numel()] for i in part if gradients[i].numel()]
    active, rows = waiting[:CHAINS], []
    del waiting[:CHAINS]
    while active:
        step = min(left for _, _, left in active)
        spare = [(active[0][0], len(gradients) + i) for i in range(CHAINS - len(active))]
        pairs = [(address, place) for address, place, _ in active] + spare
        rows.append([address for address, _ in pairs] + [place for _, place in pairs] + [step])
        moved = [[address + step * FLOAT, place, left - step] for address, place, left in active]
        active = [each for each in moved if each[2]]
        active += waiting[: CHAINS - len(active)]
        del waiting[: len(moved) - len([each for each in moved if each[2]])]
    return rows


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
