"""sum, mean, and the gradients of operands that were broadcast: one axis at a time, last first, k ascending.

Vectorised over independent outputs only; the loop over k stays a loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samebits.reference.arrays import Floats, fma
from samebits.reference.scalar import F32


def sum_axis(x: Floats, axis: int, start: Floats | None = None) -> Floats:
    """The sum over one axis, which stays with one element, from +0 or from start."""
    total = np.zeros([1 if i == axis else n for i, n in enumerate(x.shape)], F32) if start is None else start.copy()
    for k in range(x.shape[axis]):
        with np.errstate(all="ignore"):
            total = total + np.take(x, [k], axis)
    return total


def chain_axis(a: Floats, b: Floats, axis: int, start: Floats | None = None) -> Floats:
    """The chain of fma(a, b) over one axis, which stays with one element, from +0 or from start."""
    total = np.zeros([1 if i == axis else n for i, n in enumerate(a.shape)], F32) if start is None else start.copy()
    for k in range(a.shape[axis]):
        total = fma(np.take(a, [k], axis), np.take(b, [k], axis), total)
    return total


def sums(x: Floats, axes: Sequence[int]) -> Floats:
    """The sums over several axes, which stay with one element."""
    for axis in sorted(axes, reverse=True):
        x = sum_axis(x, axis)
    return x


def means(x: Floats, axes: Sequence[int]) -> Floats:
    """The sums times binary32(1/n)."""
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    factor = F32(1.0 / count) if count else F32(np.inf)
    with np.errstate(all="ignore"):
        return sums(x, axes) * factor if factor != 1.0 else sums(x, axes)


def broadcast_backward(
    grad: Floats, other: Floats | None, shape: tuple[int, ...], start: Floats | None = None
) -> Floats:
    """The gradient of an operand of this shape, summed over every axis where it has one element or which it lacks."""
    lacking = grad.ndim - len(shape)
    axes = [i for i in range(grad.ndim) if i < lacking or shape[i - lacking] == 1]
    factor = None if other is None else np.array(np.broadcast_to(other, grad.shape), F32)
    if not axes:
        with np.errstate(all="ignore"):
            return grad if factor is None else grad * factor
    left = grad
    for axis in reversed(axes):
        begin = None
        if start is not None and axis == axes[0]:
            begin = start.reshape([1 if i == axis else n for i, n in enumerate(left.shape)])
        left = sum_axis(left, axis, begin) if factor is None else chain_axis(left, factor, axis, begin)
        factor = None
    return left.reshape(shape)
