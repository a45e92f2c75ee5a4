"""Which operators the self-test covers, and how a result is had together with its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from samebits.selftest._values import Values

Case = Callable[[Values], Iterator[Tensor]]
CASES: dict[str, Case] = {}


def covers(name: str) -> Callable[[Case], Case]:
    """Make a generator of results the case of the public operator `name`, e.g. "matmul" or "optim.SGD"."""

    def register(case: Case) -> Case:
        if name in CASES:
            raise ValueError(f"samebits.selftest: two cases cover {name}")
        CASES[name] = case
        return case

    return register


def both(values: Values, function: Callable[..., Tensor], *inputs: Tensor, chained: bool = False) -> Iterator[Tensor]:
    """The result, and the gradient of every input of floats; chained: also what two backward passes leave in .grad."""
    leaves = [x.requires_grad_() for x in inputs if x.is_floating_point()]
    out = function(*inputs)
    grad = values(*out.shape).to(out.dtype)
    yield out
    yield from torch.autograd.grad(out, leaves, grad, retain_graph=chained)
    if chained:
        for _ in range(2):
            torch.autograd.backward(out, grad, retain_graph=True, inputs=leaves)
        yield from (leaf.grad for leaf in leaves if leaf.grad is not None)
