"""Checks of arguments that every operator makes; messages begin with the operator's name."""

from __future__ import annotations

import torch
from torch import Tensor


def require_tensor(operator: str, name: str, value: object, dtype: torch.dtype = torch.float32) -> None:
    """Raise TypeError unless value is a dense tensor of the dtype, RuntimeError unless it lies in the CPU's memory."""
    if isinstance(value, Tensor) and value.dtype is dtype and value.is_cpu and value.layout is torch.strided:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{operator}: {name} must be a Tensor, not {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{operator}: {name} must be {dtype}, not {value.dtype}")
    raise RuntimeError(f"{operator}: {name} must be a dense tensor on the CPU, not {value.device}, {value.layout}")


def require(condition: bool, operator: str, problem: str) -> None:
    """Raise ValueError with the operator's name and the problem unless the condition holds."""
    if not condition:
        raise ValueError(f"{operator}: {problem}")


def size(tensor: Tensor) -> str:
    """A tensor's shape for a message, e.g. [2, 3]."""
    return str(list(tensor.shape))
