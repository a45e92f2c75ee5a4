"""One microbatch between its forward and its backward: the leaves it came from and the roots it ends in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """Either outputs that get their gradients from downstream, or a loss. All tensors have `rows` rows."""

    leaves: dict[str, Tensor]
    outputs: dict[str, Tensor]
    loss: Tensor | None
    row_losses: Tensor | None
    rows: int
    batch_rows: int

    def accumulate(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Backward from all roots at once. Parameters' gradients go on in their buffers; the leaves' are returned."""
        roots, given = self._roots(gradients)
        if roots:
            torch.autograd.backward(roots, given)
        return {name: leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}

    def leaf_gradients(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The leaves' gradients alone: no parameter's gradient is touched."""
        leaves = {name: leaf for name, leaf in self.leaves.items() if leaf.requires_grad}
        if not leaves:
            return {}
        roots, given = self._roots(gradients)
        found = torch.autograd.grad(roots, list(leaves.values()), given)
        return dict(zip(leaves, found, strict=True))

    def _float_outputs(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.outputs.items() if value.requires_grad}

    def _roots(self, gradients: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        if self.loss is not None:
            return [self.loss], [None]
        outputs = self._float_outputs()
        placed = [gradients[name].detach().to(value.device).contiguous() for name, value in outputs.items()]
        return list(outputs.values()), list(placed)
