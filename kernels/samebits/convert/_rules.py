"""torch's operations and their counterparts, and the operations that only move elements."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn as plain
from torch.nn import functional as operations

from samebits import elementary, nn, reductions
from samebits.conv2d import conv2d
from samebits.convert import _functions as spelled
from samebits.elementwise import gelu, relu, silu
from samebits.embedding import embedding
from samebits.matmul import linear, matmul
from samebits.pool import avg_pool2d, max_pool2d
from samebits.softmax import log_softmax, softmax


class Rule(NamedTuple):
    """How calls of an operation are replaced."""

    function: Callable[..., Any]
    names: tuple[str, ...]
    """Of the operation's arguments, in order; the first ones go to the function."""
    fixed: dict[str, object] = {}  # noqa: RUF012  # never changed
    """The only value that an argument may have; it is not passed on. One that is not here is passed on."""
    needed: tuple[str, ...] = ()
    """Arguments that must be given, though torch lets them be None and the function has a default."""
    fits: dict[str, Callable[[Any], bool]] = {}  # noqa: RUF012  # never changed
    """Whether an argument's value has a counterpart, where the trace knows it."""


def _is_one_axis(shape: Any) -> bool:
    return not isinstance(shape, (tuple, list)) or len(shape) == 1


def _is_no_word(value: Any) -> bool:
    return not isinstance(value, str)


_ONE, _TWO = ("input",), ("input", "other")
_WINDOWS = ("input", "kernel_size", "stride", "padding")
_MATMUL = Rule(matmul, _TWO)
_MUL = Rule(spelled.product, _TWO)
_ADD = Rule(spelled.sum_, (*_TWO, "alpha"), {"alpha": 1})
_SUB = Rule(spelled.difference, (*_TWO, "alpha"), {"alpha": 1})
_DIV = Rule(spelled.quotient, (*_TWO, "rounding_mode"), {"rounding_mode": None})
_NEG = Rule(spelled.negative, _ONE)

RULES: dict[Any, Rule] = {
    operations.relu: Rule(relu, ("input", "inplace"), {"inplace": False}),
    operations.gelu: Rule(gelu, ("input", "approximate"), {"approximate": "none"}),
    operations.silu: Rule(silu, ("input", "inplace"), {"inplace": False}),
    operations.linear: Rule(linear, ("input", "weight", "bias")),
    operations.embedding: Rule(
        embedding,
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        {"max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False, "sparse": False},
    ),
    operations.scaled_dot_product_attention: Rule(
        spelled.attend,
        ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
        {"dropout_p": 0.0, "scale": None},
    ),
    operations.layer_norm: Rule(
        spelled.normalise,
        ("input", "normalized_shape", "weight", "bias", "eps"),
        fits={"normalized_shape": _is_one_axis},
    ),
    operations.rms_norm: Rule(
        spelled.normalise_squares,
        ("input", "normalized_shape", "weight", "eps"),
        fits={"normalized_shape": _is_one_axis},
    ),
    torch.conv2d: Rule(
        conv2d, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), fits={"padding": _is_no_word}
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
    operator.matmul: _MATMUL,
    torch.matmul: _MATMUL,
    torch.bmm: _MATMUL,
    "matmul": _MATMUL,
    operator.add: _ADD,
    operator.iadd: Rule(spelled.sum_, _TWO),
    torch.add: _ADD,
    "add": _ADD,
    operator.mul: _MUL,
    torch.mul: _MUL,
    "mul": _MUL,
    operator.sub: _SUB,
    torch.sub: _SUB,
    "sub": _SUB,
    operator.truediv: _DIV,
    torch.div: _DIV,
    "div": _DIV,
    operator.neg: _NEG,
    torch.neg: _NEG,
    "neg": _NEG,
    operator.floordiv: Rule(spelled.whole_quotient, _TWO),
}
for _name in ("cos", "erf", "exp", "log", "rsqrt", "sigmoid", "sin", "sqrt", "tanh"):
    _rule = Rule(getattr(elementary, _name), _ONE)
    RULES[getattr(torch, _name)] = RULES[_name] = _rule
for _name in ("mean", "sum"):
    _rule = Rule(getattr(reductions, _name), ("input", "dim", "keepdim", "dtype"), {"dtype": None})
    RULES[getattr(torch, _name)] = RULES[_name] = _rule
for _name, _function in (("softmax", softmax), ("log_softmax", log_softmax)):
    _rule = Rule(_function, ("input", "dim", "dtype"), {"dtype": None}, needed=("dim",))
    RULES[getattr(torch, _name)] = RULES[_name] = _rule
    RULES[getattr(operations, _name)] = Rule(
        _function, ("input", "dim", "_stacklevel", "dtype"), {"_stacklevel": 3, "dtype": None}, needed=("dim",)
    )

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
    operator.add, torch.add, "add", operator.mul, torch.mul, "mul", operations.layer_norm, operations.rms_norm,
    torch.conv2d,
}  # fmt: skip
# Layers whose result may be their input's memory.
ALIASES = {plain.Dropout, plain.Flatten, plain.Identity, nn.Dropout, nn.Flatten, nn.Identity}
