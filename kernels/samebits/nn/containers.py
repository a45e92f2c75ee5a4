"""Modules made of modules. Whatever fans out goes through `samebits.fork`, so that gradients are summed in order."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Module
from torch.nn import Sequential as PlainSequential

import samebits


class Sequential(PlainSequential):
    """One module after another; torch's own, which adds no arithmetic."""


class Residual(Module):
    """x + body(x). The gradient of x is ((+0 + the sum's) + the body's), in this order."""

    def __init__(self, *body: Module) -> None:
        super().__init__()
        self.body = body[0] if len(body) == 1 else Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape that the body keeps."""
        skip, inner = samebits.fork(x, 2)
        return samebits.add(skip, self.body(inner))
