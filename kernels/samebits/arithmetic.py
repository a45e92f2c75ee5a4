"""add, mul and div, with torch's rules of broadcasting.

The result is seen as lines of elements that lie side by side, or as one and the same element again and again, in each
operand; an operand that does not fit this view is copied out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import gradient_of, refuse_second_derivative
from samebits._axes import add_along, add_products_along
from samebits._check import require_tensor, size
from samebits._compile import Kernel, inlined, kernel
from samebits._intrinsics import load32, store32
from samebits._maps import TWO_IN, mapped
from samebits._split import differentiable, split
from samebits._storage import stored

FLOAT = 4  # bytes
LINE = 4096  # elements of a line where any length would do
LINES_IN = "void(intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp)"


class _Operator(NamedTuple):
    name: str
    alike: Kernel
    """For operands of one shape."""
    lines: Kernel
    """For lines of a broadcast result."""


def _operator(name: str, combine: Callable[[float, float], float]) -> _Operator:
    """Both kernels of an operator that makes an element of y from one of a and one of b."""
    combined = inlined()(combine)

    def alike(a: int, b: int, y: int, begin: int, end: int) -> None:
        for i in range(begin, end):
            store32(y, i, combined(load32(a, i), load32(b, i)))

    def lines(
        a: int, b: int, y: int, a_line: int, a_step: int, b_line: int, b_step: int, n: int, total: int,
        begin: int, end: int,
    ) -> None:  # fmt: skip
        for i in range(begin, end):
            p, q, goal, width = a + i * a_line * FLOAT, b + i * b_line * FLOAT, y + i * n * FLOAT, min(n, total - i * n)
            if a_step == 0:
                value = load32(p, 0)
                for k in range(width):
                    store32(goal, k, combined(value, load32(q, k)))
            elif b_step == 0:
                value = load32(q, 0)
                for k in range(width):
                    store32(goal, k, combined(load32(p, k), value))
            else:
                for k in range(width):
                    store32(goal, k, combined(load32(p, k), load32(q, k)))

    alike.__name__, lines.__name__ = f"_{name}", f"_{name}_lines"  # kernels are kept by their names
    return _Operator(name, kernel(TWO_IN)(alike), kernel(LINES_IN)(lines))


ADD = _operator("add", lambda x, y: x + y)
MUL = _operator("mul", lambda x, y: x * y)
DIV = _operator("div", lambda x, y: x / y)


class _Axis(NamedTuple):
    """An axis of the result, or several that lie one behind the other in both operands; strides count floats."""

    size: int
    a: int
    b: int


def _merged(a: Tensor, b: Tensor) -> list[_Axis]:
    """The axes of two tensors of one shape, joined as far as may be."""
    axes: list[_Axis] = []
    for axis in map(_Axis, a.shape, a.stride(), b.stride()):
        outer = axes[-1] if axes else None
        if axis.size == 1:
            continue
        if outer and outer.a == axis.a * axis.size and outer.b == axis.b * axis.size:
            axes[-1] = axis._replace(size=outer.size * axis.size)
        else:
            axes.append(axis)
    return axes


def _combined(operator: _Operator, a: Tensor, b: Tensor) -> Tensor:
    """The operator's result for operands whose shapes may be broadcast together."""
    if a.shape == b.shape:
        return mapped(operator.alike, a.contiguous(), b.contiguous())
    a, b = torch.broadcast_tensors(a.contiguous(), b.contiguous())
    axes = _merged(a, b)
    if len(axes) > 2:
        return mapped(operator.alike, a.contiguous(), b.contiguous())
    y = torch.empty(a.shape, dtype=torch.float32)
    line = axes[-1] if axes else _Axis(1, 1, 1)
    outer = axes[0] if len(axes) == 2 else _Axis(-(-line.size // LINE), line.a * LINE, line.b * LINE)
    n = line.size if len(axes) == 2 else LINE
    strides = (outer.a, line.a, outer.b, line.b)
    split(operator.lines, outer.size, n, a.data_ptr(), b.data_ptr(), y.data_ptr(), *strides, n, y.numel())
    return y


def _reduced_axes(ctx: Any, position: int, shape: torch.Size, whole: torch.Size) -> list[int]:
    """The axes over which an operand's gradient is a sum: those where it has one element, or which it lacks.

    Where nothing is broadcast there are none; but a leaf's chain must not depend on whether its one row met one row of
    a batch or many.
    """
    if shape == whole and not hasattr(ctx.next_functions[position][0], "variable"):
        return []
    lacking = len(whole) - len(shape)
    return [axis for axis in range(len(whole)) if axis < lacking or shape[axis - lacking] == 1]


def _gradient(ctx: Any, position: int, shape: torch.Size, grad: Tensor, other: Tensor | None) -> Tensor | None:
    """The gradient of one operand, grad * other summed over the axes along which it was broadcast."""
    if not ctx.needs_input_grad[position]:
        return None
    axes = _reduced_axes(ctx, position, shape, grad.shape)
    if not axes:
        return grad if other is None else _combined(MUL, grad, other)
    goal = gradient_of(ctx, position, shape, ctx.operator.name)
    if goal is None:
        return None
    left = grad.contiguous()
    for axis in reversed(axes):
        kept = [1 if i == axis else length for i, length in enumerate(left.shape)]
        total = goal.buffer.view(kept) if axis == axes[0] else torch.zeros(kept, dtype=torch.float32)
        if other is None:
            add_along(left, axis, total)
        else:
            add_products_along(left, other.expand(left.shape).contiguous(), axis, total)
        left, other = total, None
    return goal.returned


def _begun(ctx: Any, operator: _Operator, a: Tensor, b: Tensor) -> Tensor:
    ctx.operator, ctx.shapes = operator, (a.shape, b.shape)
    return _combined(operator, a, b)


def _gradients(ctx: Any, grad: Tensor, by_a: Tensor | None, by_b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Those of a and b, where the result changes with them by these factors; None is 1."""
    first, second = ctx.shapes
    return _gradient(ctx, 0, first, grad, by_a), _gradient(ctx, 1, second, grad, by_b)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return _begun(ctx, ADD, a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        refuse_second_derivative("add")
        return _gradients(ctx, grad, None, None)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _begun(ctx, MUL, a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        refuse_second_derivative("mul")
        a, b = ctx.saved_tensors
        return _gradients(ctx, grad, b, a)


class _Quotient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        y = _begun(ctx, DIV, a, b)
        ctx.save_for_backward(b, y if ctx.needs_input_grad[1] else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        refuse_second_derivative("div")
        b, y = ctx.saved_tensors
        opposite = None if y is None else y.neg()  # exact: nothing but the sign changes
        return _gradients(ctx, _combined(DIV, grad, b), None, opposite)


def _apply(
    operator: _Operator, function: type[torch.autograd.Function], a: Tensor, b: Tensor | float
) -> Tensor:  # fmt: skip
    require_tensor(operator.name, "a", a)
    if isinstance(b, bool) or not isinstance(b, (Tensor, int, float)):
        raise TypeError(f"{operator.name}: b must be a Tensor or a number, not {type(b).__name__}")
    if not isinstance(b, Tensor):
        b = torch.tensor(np.float32(b), dtype=torch.float32)
    require_tensor(operator.name, "b", b)
    try:
        torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError:
        raise ValueError(f"{operator.name}: shapes {size(a)} and {size(b)} cannot be broadcast together") from None
    if differentiable(a, b):
        result: Tensor = function.apply(a, b)
        return result
    return _combined(operator, a, b)


@stored("a", "b")
def add(a: Tensor, b: Tensor | float) -> Tensor:
    """a + b for float32 tensors whose shapes can be broadcast together; b may be a number, rounded to binary32 once.

    Gradients: grad; for an operand that was broadcast, the ascending sum of grad over each axis where it has one
    element or which it lacks, last axis first, each from +0. For a leaf the last of these sums continues what stands in
    .grad, so microbatches along the first axis equal the whole batch.

    TypeError: not float32 tensors; ValueError: shapes that do not fit; RuntimeError: not in the CPU's memory.
    """
    return _apply(ADD, _Sum, a, b)


@stored("a", "b")
def mul(a: Tensor, b: Tensor | float) -> Tensor:
    """a * b for float32 tensors whose shapes can be broadcast together; b may be a number, rounded to binary32 once.

    Gradients: grad * the other operand. For an operand that was broadcast, the first sum (over the last axis where it
    has one element or which it lacks) is a chain of fma(grad, other, acc) from +0, and the others are ascending sums;
    for a leaf the last of these chains continues what stands in .grad.

    Errors: those of `add`.
    """
    return _apply(MUL, _Product, a, b)


@stored("a", "b")
def div(a: Tensor, b: Tensor | float) -> Tensor:
    """a / b for float32 tensors whose shapes can be broadcast together; b may be a number, rounded to binary32 once.

    Each quotient is rounded once; x / 0 is an infinity with the sign of both, 0 / 0 NaN.
    Gradients, with q = grad / b: q for a, and q * -(a / b) for b, summed as in `add` and in `mul`.

    Errors: those of `add`.
    """
    return _apply(DIV, _Quotient, a, b)
