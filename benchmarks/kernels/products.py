"""matmul and linear: forward, and both gradients, from one row to as many rows as a weight has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import samebits
import torch
from torch import Tensor

from benchmarks.kernels.registry import Case, Limits, Row, group

LIMITS = Limits(mean_reach=1.25, mean_aim=1.0, worst_reach=1.8, worst_aim=1.2)
ROWS = (1, 8, 64, 512, 4096)
WIDTHS = (256, 1024, 4096)
QUICK_ROWS, QUICK_WIDTHS = (1, 8, 64, 512), (256, 1024)
Operator = Callable[..., Tensor]


def _backward(operator: Operator, leaf: int, grad: Tensor, *arguments: Tensor) -> Callable[[], object]:
    """Only the gradient of argument `leaf`, into an empty .grad as at the start of a step, again from one graph."""
    inputs = [tensor.detach().requires_grad_(i == leaf) for i, tensor in enumerate(arguments)]
    out, wanted = operator(*inputs), inputs[leaf]

    def run() -> None:
        wanted.grad = None
        out.backward(grad, retain_graph=True)

    return run


def _forward(operator: Operator, *arguments: Tensor) -> Callable[[], object]:
    """The forward as in training: torch records it."""
    inputs = [tensor.detach().requires_grad_() for tensor in arguments]
    return lambda: operator(*inputs)


def _shapes(quick: bool) -> Iterator[tuple[int, int, int]]:
    widths = QUICK_WIDTHS if quick else WIDTHS
    yield from itertools.product(QUICK_ROWS if quick else ROWS, widths, widths)


def _three(operators: tuple[Operator, Operator], name: str, grad: Tensor, *arguments: Tensor) -> Iterator[Case]:
    """Forward, gradient of the first argument, gradient of the second."""

    def case(what: str, make: Callable[[Operator], Callable[[], Any]]) -> Case:
        return Case(f"{name} {what}", *(make(operator) for operator in operators))

    yield case("forward", lambda operator: _forward(operator, *arguments))
    yield case("grad input", lambda operator: _backward(operator, 0, grad, *arguments))
    yield case("grad weight", lambda operator: _backward(operator, 1, grad, *arguments))


@group("matmul", LIMITS)
def matmul(quick: bool, threads: int) -> Iterator[Case | Row]:
    """[m, k] @ [k, n]."""
    for m, k, n in _shapes(quick):
        a, b, grad = torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)
        yield from _three((torch.matmul, samebits.matmul), f"{m}x{k}x{n}", grad, a, b)


@group("linear", LIMITS)
def linear(quick: bool, threads: int) -> Iterator[Case | Row]:
    """[m, k] @ [n, k].T + [n]."""
    for m, k, n in _shapes(quick):
        x, weight, bias, grad = torch.randn(m, k), torch.randn(n, k), torch.randn(n), torch.randn(m, n)
        operators = (torch.nn.functional.linear, samebits.linear)
        yield from _three(operators, f"{m}x{k}x{n}", grad, x, weight, bias)
