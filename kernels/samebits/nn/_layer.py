"""What a layer with parameters is: a torch module that says how each of its parameters begins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from samebits import random


@dataclass(frozen=True)
class Constant:
    """Every element the same."""

    value: float

    def fill(self, tensor: Tensor, seed: int, site: int) -> None:
        """Overwrite the tensor."""
        tensor.fill_(self.value)


@dataclass(frozen=True)
class Uniform:
    """Between -bound and bound."""

    bound: float

    def fill(self, tensor: Tensor, seed: int, site: int) -> None:
        """Overwrite the tensor."""
        tensor.copy_(random.uniform(tensor.shape, -self.bound, self.bound, seed=seed, site=site))


@dataclass(frozen=True)
class Normal:
    """Of mean 0; one row may be kept at 0."""

    std: float
    zero_row: int | None = None

    def fill(self, tensor: Tensor, seed: int, site: int) -> None:
        """Overwrite the tensor."""
        tensor.copy_(random.normal(tensor.shape, self.std, seed=seed, site=site))
        if self.zero_row is not None:
            tensor[self.zero_row].zero_()


Beginning = Constant | Uniform | Normal


class Layer(Module):
    """A module with parameters of its own. Drawn ones are NaN until `init_` or load_state_dict, so none goes unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.beginnings: dict[str, Beginning] = {}

    def begin(self, name: str, shape: tuple[int, ...], beginning: Beginning) -> None:
        """Register a float32 parameter and how it begins."""
        value = beginning.value if isinstance(beginning, Constant) else float("nan")
        parameter = Parameter(torch.empty(shape, dtype=torch.float32))
        with torch.no_grad():
            parameter.fill_(value)
        self.register_parameter(name, parameter)
        self.beginnings[name] = beginning
