"""What a numerics profile brings to a stage: its operators, its loss, its optimizers, and a name for its bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pnode.v1 import spec_pb2


class Profile(Protocol):
    """One way to compute. All tensors of a stage live on `device`."""

    @property
    def device(self) -> torch.device: ...

    @property
    def numerics_class(self) -> str:
        """Equal classes give equal bits; results of different classes are never compared."""

    def activate(self) -> None:
        """Set what the process must have set: threads, determinism. Called before every command; cheap when set."""

    def run(self, op: spec_pb2.Operator, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """One operator on tensors with a leading axis of rows; parameters in the order of the allow-list."""

    def fork(self, value: Tensor, num_readers: int) -> Sequence[Tensor]:
        """One branch for each reader; backward sums their gradients by ascending reader where the profile says so."""

    def cross_entropy(self, logits: Tensor, target: Tensor, batch_rows: int) -> Tensor:
        """The sum over these rows times binary32(1 / batch_rows), for the backward."""

    def row_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """One loss for each row."""

    def row_sum(self, values: Tensor, start: Tensor) -> Tensor:
        """`start`, then the values added one by one, ascending."""

    def optimizer(self, parameters: Sequence[Tensor], spec: spec_pb2.Optimizer) -> torch.optim.Optimizer:
        """An optimizer whose `lr` is set anew before every step."""

    def step_count(self, version: int) -> object:
        """What the optimizer keeps as its number of steps taken."""
