"""conv2d and pooling: LeNet's layers at batch 100, and layers of a residual network at batch 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import samebits
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.registry import Case, Limits, Row, group


class Layer(NamedTuple):
    """A convolution's sizes."""

    name: str
    x: tuple[int, int, int, int]
    outputs: int
    kernel: int
    stride: int
    padding: int


LAYERS = (
    Layer("lenet 1", (100, 1, 28, 28), 6, 5, 1, 2),
    Layer("lenet 2", (100, 6, 14, 14), 16, 5, 1, 0),
    Layer("64x56x56 3x3", (4, 64, 56, 56), 64, 3, 1, 1),
    Layer("64x56x56 3x3 stride 2", (4, 64, 56, 56), 128, 3, 2, 1),
    Layer("64x56x56 1x1", (4, 64, 56, 56), 64, 1, 1, 0),
    Layer("256x14x14 3x3", (4, 256, 14, 14), 256, 3, 1, 1),
)
Operator = Callable[..., Any]
POOLS: dict[str, tuple[Operator, Operator]] = {
    "max": (functional.max_pool2d, samebits.max_pool2d),
    "average": (functional.avg_pool2d, samebits.avg_pool2d),
}


def _case(name: str, operators: tuple[Operator, Operator], make: Callable[[Operator], Callable[[], object]]) -> Case:
    return Case(name, *(make(operator) for operator in operators))


def _gradient(operator: Operator, arguments: list[Tensor], wanted: list[int], options: tuple[int, ...]) -> Operator:
    """The gradients of some arguments, again and again from one graph."""
    inputs = [tensor.detach().requires_grad_(i in wanted) for i, tensor in enumerate(arguments)]
    out = operator(*inputs, *options)
    grad, leaves = torch.ones_like(out), [inputs[i] for i in wanted]
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


@group("conv2d", Limits())
def conv2d(quick: bool, threads: int) -> Iterator[Case | Row]:
    """Forward, gradient of the input, gradients of weight and bias."""
    operators = (functional.conv2d, samebits.conv2d)
    for layer in LAYERS[:2] if quick else LAYERS:
        weight = torch.randn(layer.outputs, layer.x[1], layer.kernel, layer.kernel)
        arguments, options = [torch.randn(layer.x), weight, torch.randn(layer.outputs)], (layer.stride, layer.padding)

        def forward(operator: Operator, inputs: list[Tensor] = arguments, o: tuple[int, ...] = options) -> Operator:
            return lambda: operator(*inputs, *o)

        yield _case(f"{layer.name} forward", operators, forward)
        for what, wanted in (("grad input", [0]), ("grad weight", [1, 2])):

            def backward(
                operator: Operator,
                inputs: list[Tensor] = arguments,
                w: list[int] = wanted,
                o: tuple[int, ...] = options,
            ) -> Operator:
                return _gradient(operator, inputs, w, o)

            yield _case(f"{layer.name} {what}", operators, backward)


@group("pool", Limits())
def pool(quick: bool, threads: int) -> Iterator[Case | Row]:
    """2x2 windows, forward and backward."""
    for name, operators in POOLS.items():
        for shape in ((100, 6, 28, 28), (100, 16, 10, 10)):
            x = torch.randn(shape)

            def forward(operator: Operator, x: Tensor = x) -> Operator:
                return lambda: operator(x, 2)

            def backward(operator: Operator, x: Tensor = x) -> Operator:
                return _gradient(operator, [x], [0], (2,))

            yield _case(f"{name} {list(shape)} forward", operators, forward)
            yield _case(f"{name} {list(shape)} backward", operators, backward)
