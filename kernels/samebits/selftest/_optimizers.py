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


@covers("optim.Adam")
def _adam(values: Values) -> Iterator[Tensor]:
    yield from steps(values, lambda ps: optim.Adam(ps, lr=0.01))
    yield from steps(values, lambda ps: optim.Adam(ps, lr=0.002, weight_decay=0.05))


@covers("optim.clip_grad_norm_")
def _clip_grad_norm(values: Values) -> Iterator[Tensor]:
    parameters = [values(17, 19), values(16411), values(1)]
    for max_norm in (0.25, 1e6):
        for p in parameters:
            p.grad = values(*p.shape)
        yield optim.clip_grad_norm_(parameters, max_norm)
        yield from (p.grad for p in parameters if p.grad is not None)


@covers("optim.set_lr")
def _set_lr(values: Values) -> Iterator[Tensor]:
    del values
    decays = (optim.Cosine(7, end=0.1), optim.Polynomial(7, 2.5), optim.Step(2, 0.3), optim.MultiStep((2, 3), 0.3))
    optimizer = optim.SGD([torch.zeros(1)], lr=0.1)
    for decay in decays:
        for step in range(9):
            optim.set_lr(optimizer, optim.WarmUp(3, decay), step)
            yield torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64)
