"""torch's operations in torch's spelling, over samebits' functions."""

from __future__ import annotations

from typing import Any

from numpy import float32
from torch import Tensor

from samebits.arithmetic import add, div, mul
from samebits.attention import attention
from samebits.layer_norm import layer_norm
from samebits.nn.norms import RMS_EPS, last_axis
from samebits.rms_norm import rms_norm


def sum_(a: Any, b: Any) -> Any:
    """samebits.add, a number being the second; integers (sizes) are added by Python."""
    if isinstance(a, Tensor):
        return add(a, b)
    return add(b, a) if isinstance(b, Tensor) else _whole(a) + _whole(b)


def product(a: Any, b: Any) -> Any:
    """samebits.mul, in the same way."""
    if isinstance(a, Tensor):
        return mul(a, b)
    return mul(b, a) if isinstance(b, Tensor) else _whole(a) * _whole(b)


def negative(x: Any) -> Any:
    """x * -1, which is exact, and so is the sign of a zero."""
    return mul(x, -1.0) if isinstance(x, Tensor) else -x


def difference(a: Any, b: Any) -> Any:
    """a + (-b), which is the same number as a - b for every a and b."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return sum_(a, negative(b))
    return _whole(a) - _whole(b)


def quotient(a: Any, b: Any) -> Any:
    """a / b, where a number over a tensor is a tensor of that number over it."""
    if isinstance(a, Tensor):
        return div(a, b)
    if not isinstance(b, Tensor):
        raise TypeError("convert: two numbers are divided by // only, since their quotient would not be in binary32")
    return div(b.new_tensor(float32(a)), b)


def whole_quotient(a: Any, b: Any) -> Any:
    """a // b of sizes."""
    return _whole(a) // _whole(b)


def _whole(number: Any) -> int:
    if type(number) is not int:
        raise TypeError(f"convert: sizes are computed with ints only, not {type(number).__name__}")
    return number


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, grouped: bool = False
) -> Tensor:  # fmt: skip
    """torch's scaled_dot_product_attention: a mask may lack leading axes; queries are grouped only where asked for."""
    if not grouped and q.shape[1] != k.shape[1]:
        raise ValueError(f"attention: {q.shape[1]} heads of queries and {k.shape[1]} of keys, without enable_gqa")
    whole = mask if mask is None else mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    return attention(q, k, v, causal, whole)


def normalise(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """torch's layer_norm, over the last axis."""
    last_axis("layer_norm", shape)
    return layer_norm(x, weight, bias, eps)


def normalise_squares(x: Tensor, shape: Any, weight: Tensor, eps: float | None = None) -> Tensor:
    """torch's rms_norm, over the last axis."""
    last_axis("rms_norm", shape)
    return rms_norm(x, weight, RMS_EPS if eps is None else eps)
