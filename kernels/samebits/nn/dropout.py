"""Dropout as a module, told by `place_` where in the run it stands."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module

import samebits
from samebits._check import require


class Dropout(Module):
    """`samebits.dropout` while training. RuntimeError where `samebits.nn.place_` has not said which mask is due."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        require(0.0 <= p <= 1.0, "Dropout", f"p must be within 0..1, not {p}")
        self.p = p
        self.place: dict[str, Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape, its first axis the samples."""
        if not self.training or self.p == 0.0:
            return x
        if self.place is None:
            raise RuntimeError(
                "Dropout: call samebits.nn.place_(model, seed=..., step=..., sample=...) before training"
            )
        return samebits.dropout(x, self.p, **self.place)

    def extra_repr(self) -> str:
        """The rate."""
        return f"p={self.p}"
