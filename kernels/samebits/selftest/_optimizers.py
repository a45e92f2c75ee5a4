"""Cases of the optimizers: several steps on parameters of several sizes, and the state that they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from samebits import optim
from samebits.selftest._registry import covers
from samebits.selftest._values import Values

STEPS = 4  # enough for the powers of the betas to differ from products
Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def steps(values: Values, make: Make) -> Iterator[Tensor]:
    """Parameters and state after STEPS steps, the last of them on special gradients."""
    parameters = [values(17, 19), values(16411), values(1)]
    optimizer = make(parameters)
    for step in range(STEPS):
        for p in parameters:
            p.grad = values.strewn(*p.shape) if step == STEPS - 1 else values(*p.shape)
        optimizer.step()
        yield from (p.clone() for p in parameters)
    for p in parameters:
        state = optimizer.state[p]
        yield from (state[name] for name in sorted(state) if isinstance(state[name], Tensor))


@covers("optim.SGD")
def _sgd(values: Values) -> Iterator[Tensor]:
    yield from steps(values, lambda ps: optim.SGD(ps, lr=0.1))
    yield from steps(values, lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01))


@covers("optim.AdamW")
def _adamw(values: Values) -> Iterator[Tensor]:
    yield from steps(values, lambda ps: optim.AdamW(ps, lr=0.002, weight_decay=0.05))
