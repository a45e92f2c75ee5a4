"""What would make any module compute something else than its class says: hooks, patches, parameters in two places."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import Module

from samebits.convert._errors import Reason

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def faults(module: Module) -> list[Reason]:
    """Every such thing in the module and below."""
    found = []
    for path, part in module.named_modules():
        found += [Reason(path, text) for text in _of_module(part)]
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            whole = f"{path}.{name}" if path else name
            found += [Reason(path, f"{whole} {text}") for text in _of_tensor(tensor)]
    return found + list(_tied(module))


def _of_module(part: Module) -> Iterator[str]:
    if any(getattr(part, name, None) for name in HOOKS):
        yield "has hooks, which would be passed by"
    if "forward" in vars(part):
        yield "has had its forward replaced"
    if hasattr(part, "parametrizations"):
        yield "has parametrizations"


def _of_tensor(tensor: Tensor) -> Iterator[str]:
    if tensor.is_floating_point() and tensor.dtype != torch.float32:
        yield f"is {tensor.dtype}, not torch.float32"
    if not tensor.is_cpu or tensor.layout is not torch.strided:
        yield f"is not a dense tensor on the CPU, but {tensor.device}, {tensor.layout}"
    if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
        yield "has gradient hooks"


def _tied(module: Module) -> Iterator[Reason]:
    """Parameters that two places share: whose gradient is summed first would be torch's to choose."""
    first: dict[int, str] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        for name, parameter in part.named_parameters(recurse=False):
            whole = f"{path}.{name}" if path else name
            if not parameter.is_cpu or not parameter.numel():
                continue
            before = first.setdefault(parameter.untyped_storage().data_ptr(), whole)
            if before != whole:
                yield Reason(path, f"{whole} is tied to {before}")
