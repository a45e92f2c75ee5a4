"""Cases of the operators that treat every element alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from samebits import arithmetic, elementary, elementwise
from samebits.fork import fork
from samebits.selftest._registry import both, covers
from samebits.selftest._values import Values

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "cos": elementary.cos,
    "erf": elementary.erf,
    "exp": elementary.exp,
    "gelu": elementwise.gelu,
    "log": elementary.log,
    "relu": elementwise.relu,
    "rsqrt": elementary.rsqrt,
    "sigmoid": elementary.sigmoid,
    "silu": elementwise.silu,
    "sin": elementary.sin,
    "sqrt": elementary.sqrt,
    "tanh": elementary.tanh,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": arithmetic.add}


def _unary(values: Values, function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Ordinary numbers, enough for two threads; any bits; special ones, as an odd number of columns in memory."""
    yield from both(values, function, values(257, 67, lowest=-16, binades=32))
    yield from both(values, function, values.any_bits(1021))
    yield from both(values, function, values.strewn(31, 3).mT)
    yield from both(values, function, values(0, 3))


def _binary(values: Values, function: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
    yield from both(values, function, values(127, 131), values(127, 131))
    yield from both(values, function, values.any_bits(1021), values.any_bits(1021))
    yield from both(values, function, values.strewn(31, 3).mT, values.strewn(3, 31))


for _name, _function in UNARY.items():
    covers(_name)(lambda values, function=_function: _unary(values, function))  # type: ignore[misc]
for _name, _pair in BINARY.items():
    covers(_name)(lambda values, function=_pair: _binary(values, function))  # type: ignore[misc]


def _broadcast(values: Values, function: Callable[..., Tensor], *others: Callable[..., Tensor]) -> Iterator[Tensor]:
    """Alike, by a number, and broadcast: lines, columns, scattered axes, each with the sums that its gradients need."""
    yield from _binary(values, function)
    yield from both(values, lambda x: function(x, 0.7), values(31, 7))
    for shape in ((67,), (33, 1), (5, 1, 67), ()):
        for each in (function, *others):
            yield from both(values, each, values(5, 33, 67), values(*shape), chained=True)


covers("mul")(lambda values: _broadcast(values, arithmetic.mul, arithmetic.add))
covers("div")(lambda values: _broadcast(values, arithmetic.div))


@covers("fork")
def _fork(values: Values) -> Iterator[Tensor]:
    x = values(31, 7).requires_grad_()
    yield from torch.autograd.grad(fork(x, 3), x, [values.strewn(31, 7) for _ in range(3)])
