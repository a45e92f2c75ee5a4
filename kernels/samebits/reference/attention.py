"""attention and its gradients, head by head and row by row, with what a row does not see absent from every chain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samebits.reference.arrays import Floats, fma, product
from samebits.reference.elementary import exp
from samebits.reference.scalar import F32, ZERO

Seen = NDArray[Any]


def scale_of(width: int) -> np.float32:
    """binary32(1 / sqrt(width)), computed in binary64."""
    return F32(1.0 / math.sqrt(width))


def seen_by(rows: int, keys: int, causal: bool) -> Seen:
    """[T, S], whether row i sees key j: all of them, or those with j <= i."""
    return np.array([[not causal or j <= i for j in range(keys)] for i in range(rows)], bool).reshape(rows, keys)


def _softmax_row(x: Floats) -> Floats:
    if not len(x):
        return x
    m = x[0]
    for value in x[1:]:
        m = value if value > m or np.isnan(value) else m
    with np.errstate(all="ignore"):
        e = np.array([exp(value - m) for value in x], F32)
        total = ZERO
        for value in e:
            total = F32(total + value)
        return e / total


def probabilities(q: Floats, k: Floats, seen: Seen) -> list[Floats]:
    """p of one head: for each row the probabilities of the keys that it sees."""
    with np.errstate(all="ignore"):
        scores = product(q, k.T) * scale_of(q.shape[1])
    return [_softmax_row(row[keys]) for row, keys in zip(scores, seen, strict=True)]


def attention(q: Floats, k: Floats, v: Floats, seen: Seen) -> Floats:
    """One head: q [T, D], k and v [S, D]."""
    p = probabilities(q, k, seen)
    rows = [product(row[None, :], v[keys])[0] for row, keys in zip(p, seen, strict=True)]
    return np.array(rows, F32).reshape(q.shape)


def attention_backward(
    q: Floats, k: Floats, v: Floats, g: Floats, seen: Seen, grad_k: Floats, grad_v: Floats
) -> Floats:  # fmt: skip
    """The gradient of q of one head. Those of k and v are continued in place, from the heads before in their group."""
    scale, p, grad_q = scale_of(q.shape[1]), probabilities(q, k, seen), np.zeros(q.shape, F32)
    for i, row in enumerate(p):
        (keys,) = seen[i].nonzero()
        dp = product(g[i : i + 1], v[keys].T)[0]
        d = product(row[None, :], dp[:, None])[0, 0]
        with np.errstate(all="ignore"):
            ds = (row * (dp - d)) * scale
        for position, j in enumerate(keys):
            grad_q[i] = fma(ds[position], k[j], grad_q[i])
            grad_k[j] = fma(ds[position], q[i], grad_k[j])
            grad_v[j] = fma(row[position], g[i], grad_v[j])
    return grad_q
