"""Operators of one tensor that treat every element alone: checks, autograd, and the sharing out, written once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._check import require_tensor
from samebits._compile import Kernel
from samebits._split import differentiable, split

ONE_IN = "void(intp, intp, intp, intp)"  # input, output, begin, end
TWO_IN = "void(intp, intp, intp, intp, intp)"  # two inputs, output, begin, end


class Map(NamedTuple):
    """An operator y = f(x) and its backward."""

    name: str
    forward: Kernel
    """(x, y, begin, end)"""
    backward: Kernel
    """(grad_output, kept, grad_input, begin, end)"""
    keeps_result: bool = False
    """Whether the backward is given y; else it is given x."""


def mapped(compiled: Kernel, *inputs: Tensor) -> Tensor:
    """A new tensor from a kernel over contiguous inputs of one shape."""
    made = torch.empty_like(inputs[0])
    split(compiled, made.numel(), 1, *[tensor.data_ptr() for tensor in inputs], made.data_ptr())
    return made


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: Map) -> Tensor:
        x = x.contiguous()
        ctx.operator = operator
        y = mapped(operator.forward, x)
        ctx.save_for_backward(y if operator.keeps_result else x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative(ctx.operator.name)
        return mapped(ctx.operator.backward, grad.contiguous(), *ctx.saved_tensors), None


def apply(operator: Map, x: Tensor) -> Tensor:
    """f(x), recorded for backward if torch records."""
    require_tensor(operator.name, "x", x)
    if differentiable(x):
        result: Tensor = _Apply.apply(x, operator)  # type: ignore[no-untyped-call]  # torch's own
        return result
    return mapped(operator.forward, x.contiguous())
