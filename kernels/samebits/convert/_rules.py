"""torch's operations and their counterparts, and the operations that only move elements."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn as plain
from torch import Tensor
from torch.nn import functional as operations

from samebits import elementary, nn, reductions
from samebits.arithmetic import add, mul
from samebits.attention import attention
from samebits.elementwise import gelu, relu, silu
from samebits.embedding import embedding
from samebits.matmul import linear, matmul
from samebits.pool import avg_pool2d, max_pool2d
from samebits.softmax import softmax


class Rule(NamedTuple):
    """How calls of an operation are replaced."""

    function: Callable[..., Any]
    names: tuple[str, ...]
    """Of the operation's arguments, in order; the first ones go to the function."""
    fixed: dict[str, object] = {}  # noqa: RUF012  # never changed
    """The only value that an argument may have; it is not passed on. One that is not here is passed on."""


def _sum(a: Any, b: Any) -> Any:
    """samebits.add, a number being the second; integers (sizes) are added by Python."""
    if isinstance(a, Tensor):
        return add(a, b)
    return add(b, a) if isinstance(b, Tensor) else _whole(a) + _whole(b)


def _product(a: Any, b: Any) -> Any:
    """samebits.mul, in the same way."""
    if isinstance(a, Tensor):
        return mul(a, b)
    return mul(b, a) if isinstance(b, Tensor) else _whole(a) * _whole(b)


def _quotient(a: Any, b: Any) -> Any:
    return _whole(a) // _whole(b)


def _whole(number: Any) -> int:
    if type(number) is not int:
        raise TypeError(f"convert: sizes are computed with ints only, not {type(number).__name__}")
    return number


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, grouped: bool = False
) -> Tensor:  # fmt: skip
    """torch's scaled_dot_product_attention: a mask may lack leading axes; queries are grouped only where asked for."""
    if not grouped and q.shape[1] != k.shape[1]:
        raise ValueError(f"attention: {q.shape[1]} heads of queries and {k.shape[1]} of keys, without enable_gqa")
    whole = mask if mask is None else mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    return attention(q, k, v, bool(causal), whole)


_ONE, _TWO = ("input",), ("input", "other")
_WINDOWS = ("input", "kernel_size", "stride", "padding")
_SOFTMAX = Rule(softmax, ("input", "dim", "_stacklevel", "dtype"), {"dim": -1, "_stacklevel": 3, "dtype": None})
_MATMUL = Rule(matmul, _TWO)
_MUL = Rule(_product, _TWO)
_ADD = Rule(_sum, (*_TWO, "alpha"), {"alpha": 1})

RULES: dict[Any, Rule] = {
    operations.relu: Rule(relu, ("input", "inplace"), {"inplace": False}),
    operations.gelu: Rule(gelu, ("input", "approximate"), {"approximate": "none"}),
    operations.silu: Rule(silu, ("input", "inplace"), {"inplace": False}),
    operations.linear: Rule(linear, ("input", "weight", "bias")),
    operations.softmax: _SOFTMAX,
    operations.embedding: Rule(
        embedding,
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        {"max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False, "sparse": False},
    ),
    operations.scaled_dot_product_attention: Rule(
        _attention,
        ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
        {"dropout_p": 0.0, "scale": None},
    ),
    operations.max_pool2d: Rule(
        max_pool2d,
        (*_WINDOWS, "dilation", "ceil_mode", "return_indices"),
        {"dilation": 1, "ceil_mode": False, "return_indices": False},
    ),
    operations.avg_pool2d: Rule(
        avg_pool2d,
        (*_WINDOWS, "ceil_mode", "count_include_pad", "divisor_override"),
        {"ceil_mode": False, "count_include_pad": True, "divisor_override": None},
    ),
    torch.relu: Rule(relu, _ONE),
    "relu": Rule(relu, _ONE),
    torch.softmax: Rule(softmax, ("input", "dim", "dtype"), {"dim": -1, "dtype": None}),
    "softmax": Rule(softmax, ("input", "dim", "dtype"), {"dim": -1, "dtype": None}),
    operator.matmul: _MATMUL,
    torch.matmul: _MATMUL,
    torch.bmm: _MATMUL,
    "matmul": _MATMUL,
    operator.add: _ADD,
    operator.iadd: Rule(_sum, _TWO),
    torch.add: _ADD,
    "add": _ADD,
    operator.mul: _MUL,
    torch.mul: _MUL,
    "mul": _MUL,
    operator.floordiv: Rule(_quotient, _TWO),
}
for _name in ("cos", "erf", "exp", "log", "rsqrt", "sigmoid", "sin", "sqrt", "tanh"):
    _rule = Rule(getattr(elementary, _name), _ONE)
    RULES[getattr(torch, _name)] = RULES[_name] = _rule
for _name in ("mean", "sum"):
    _rule = Rule(getattr(reductions, _name), ("input", "dim", "keepdim", "dtype"), {"dtype": None})
    RULES[getattr(torch, _name)] = RULES[_name] = _rule

# Operations that move elements and never add two of them, forward or backward, and questions about shapes.
TUPLES = {"chunk", "split", torch.chunk, torch.split}
QUESTIONS = {"dim", "size", "numel"}
MOVES = TUPLES | QUESTIONS | {
    "contiguous", "flatten", "permute", "reshape", "squeeze", "transpose", "unsqueeze", "view",
    torch.arange, torch.cat, torch.flatten, torch.permute, torch.reshape, torch.squeeze, torch.transpose,
    torch.unsqueeze,
}  # fmt: skip
ATTRIBUTES = {"T", "mT", "shape", "device"}
# Where the gradient of a parameter continues the chain in .grad; elsewhere torch would add finished sums.
CHAINED = {operations.linear, operations.embedding, operator.matmul, torch.matmul, "matmul"} | {
    operator.add, torch.add, "add", operator.mul, torch.mul, "mul",
}  # fmt: skip
# Layers whose result may be their input's memory.
ALIASES = {plain.Dropout, plain.Flatten, plain.Identity, nn.Dropout, nn.Flatten, nn.Identity}
