"""Row and elementwise operators of a transformer, and AdamW: forward alone, and forward with backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import samebits
import torch
from torch import Tensor
from torch.nn import functional as plain

from benchmarks.kernels.registry import Case, Limits, Row, group

LIMITS = Limits(worst_reach=2.5, worst_aim=1.0)
Shape = tuple[int, ...]
Operator = Callable[..., Tensor]
SOFTMAX: list[Shape] = [(2048, 256), (2048, 1024), (8192, 64), (32 * 8 * 64, 64)]
NORM: list[Shape] = [(2048, 256), (2048, 1024)]
WIDE: list[Shape] = [(2048, 1024)]
CLASSES: list[Shape] = [(2048, 1000), (512, 32000)]
SIZES: list[Shape] = [(1024, 1024), (4096, 1024)]
FUNCTIONS = ("exp", "log", "tanh", "erf", "sigmoid", "sqrt", "rsqrt", "sin", "cos")


def _forward(operator: Operator, *inputs: Tensor) -> Callable[[], object]:
    """Without a graph, as in inference."""
    constants = [tensor.detach() for tensor in inputs]
    return lambda: operator(*constants)


def _both(operator: Operator, *inputs: Tensor) -> Callable[[], object]:
    """With a graph, then the gradients of all inputs of binary32."""
    leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grad = torch.randn(operator(*leaves).shape)
    return lambda: torch.autograd.grad(operator(*leaves), wanted, grad)


def _cases(name: str, shape: Shape, theirs: Operator, ours: Operator, *inputs: Tensor) -> Iterator[Case]:
    what = f"{name} {'x'.join(map(str, shape))}"
    yield Case(f"{what} forward", _forward(theirs, *inputs), _forward(ours, *inputs))
    yield Case(f"{what} both", _both(theirs, *inputs), _both(ours, *inputs))


def _of_rows(quick: bool) -> Iterator[Case]:
    for shape in SOFTMAX[: 1 if quick else None]:
        x = torch.randn(shape)
        yield from _cases("softmax", shape, lambda x: plain.softmax(x, -1), samebits.softmax, x)
        yield from _cases("log_softmax", shape, lambda x: plain.log_softmax(x, -1), samebits.log_softmax, x)
    for shape in NORM[: 1 if quick else None]:
        x, weight, bias, width = torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape[-1]), shape[-1:]
        theirs: Operator = lambda x, w, b, width=width: plain.layer_norm(x, width, w, b, 1e-5)  # noqa: E731
        yield from _cases(
            "layer_norm", shape, theirs, lambda x, w, b: samebits.layer_norm(x, w, b, 1e-5), x, weight, bias
        )
        theirs = lambda x, w, width=width: plain.rms_norm(x, width, w, 1e-5)  # noqa: E731
        yield from _cases("rms_norm", shape, theirs, lambda x, w: samebits.rms_norm(x, w, 1e-5), x, weight)


@group("rows", LIMITS)
def rows(quick: bool, threads: int) -> Iterator[Case | Row]:
    """Softmax, norms, activations and losses."""
    yield from _of_rows(quick)
    for shape in WIDE:
        x = torch.randn(shape)
        yield from _cases("gelu", shape, plain.gelu, samebits.gelu, x)
        yield from _cases("silu", shape, plain.silu, samebits.silu, x)
        yield from _cases("add", shape, torch.add, samebits.add, x, torch.randn(shape))
        yield from _cases("add row", shape, torch.add, samebits.add, x, torch.randn(shape[-1]))
        yield from _cases("mul", shape, torch.mul, samebits.mul, x, torch.randn(shape))
        yield from _cases("div", shape, torch.div, samebits.div, x, torch.randn(shape))
    for shape in CLASSES[: 1 if quick else None]:
        x, target = torch.randn(shape), torch.randint(shape[1], shape[:1])
        yield from _cases("cross_entropy", shape, plain.cross_entropy, samebits.cross_entropy, x, target)


@group("functions", Limits(note="for information"))
def functions(quick: bool, threads: int) -> Iterator[Case | Row]:
    """The elementary functions, on ordinary values."""
    x = torch.rand(64, 1024) * 4 + 0.01 if quick else torch.rand(1024, 1024) * 4 + 0.01
    for name in FUNCTIONS:
        yield from _cases(name, tuple(x.shape), getattr(torch, name), getattr(samebits, name), x)


def _stepper(optimizer: type[Any], sizes: list[Shape], **options: Any) -> Callable[[], object]:
    torch.manual_seed(1)
    parameters = [torch.randn(size).requires_grad_() for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    step: Callable[[], object] = optimizer(parameters, lr=1e-3, **options).step
    return step


@group("adamw", LIMITS)
def adamw(quick: bool, threads: int) -> Iterator[Case | Row]:
    """A step of AdamW beside torch's fused one."""
    for size in SIZES[: 1 if quick else None]:
        theirs, ours = _stepper(torch.optim.AdamW, [size], fused=True), _stepper(samebits.optim.AdamW, [size])
        yield Case(f"step {'x'.join(map(str, size))}", theirs, ours)
