"""How an operator enters torch's graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The function's `apply`, at half the cost: without what torch's own does in Python for functorch's transforms.

    Under such a transform (vmap, jvp) the kernels get no addresses of tensors, and torch raises RuntimeError.
    """
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]  # in torch._C
    return apply
