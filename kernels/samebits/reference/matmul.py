"""matmul and linear, with their gradients, as loops over ascending k."""

from __future__ import annotations

import numpy as np

from samebits.reference.arrays import Floats, product, sum_rows


def matmul(a: Floats, b: Floats) -> Floats:
    """a [..., m, k] @ b [..., k, n]; b has the batch dimensions of a, or none."""
    out = np.empty(a.shape[:-1] + b.shape[-1:], np.float32)
    for index in np.ndindex(a.shape[:-2]):
        out[index] = product(a[index], b if b.ndim == 2 else b[index])
    return out


def matmul_backward(
    a: Floats, b: Floats, g: Floats, start_a: Floats | None = None, start_b: Floats | None = None
) -> tuple[Floats, Floats]:
    """The gradients of a and b; chains continue from start_a and start_b, as microbatches do."""
    grad_a = np.zeros(a.shape, np.float32) if start_a is None else start_a.copy()
    grad_b = np.zeros(b.shape, np.float32) if start_b is None else start_b.copy()
    for index in np.ndindex(a.shape[:-2]):
        grad_a[index] = product(g[index], (b if b.ndim == 2 else b[index]).T, grad_a[index])
        if b.ndim == 2:
            grad_b = product(a[index].T, g[index], grad_b)
        else:
            grad_b[index] = product(a[index].T, g[index], grad_b[index])
    return grad_a, grad_b


def linear(x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """x [rows, in] @ weight[out, in].T, then + bias [out]."""
    out = product(x, weight.T)
    with np.errstate(all="ignore"):
        return out if bias is None else out + bias[None, :]


def linear_backward(
    x: Floats, weight: Floats, g: Floats, start_weight: Floats | None = None, start_bias: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """The gradients of x, weight and bias; those of weight and bias continue from what is given."""
    return product(g, weight), product(g.T, x, start_weight), sum_rows(g, start_bias)
