"""From a tree of modules to its twin: known layers by table, containers part by part, all else by tracing."""

from __future__ import annotations

from typing import Any

import torch.nn as plain
from torch.nn import Module

from samebits import nn
from samebits.convert._errors import Reason, Unfit
from samebits.convert._layers import LAYERS, encoder_layer, sharing
from samebits.convert._traced import Leaves, traced


def ours(module: Module) -> bool:
    """Whether the module is one of samebits.nn already."""
    return type(module).__module__.startswith("samebits.nn.")


def is_leaf(module: Module) -> bool:
    """Whether a trace stops before the module: it is converted, or refused, as a whole."""
    if type(module) in (plain.Sequential, plain.ModuleList, plain.ModuleDict):
        return False
    return ours(module) or type(module).__module__.startswith("torch.")


def converted(module: Module, path: str, reasons: list[Reason], causal: bool) -> Module | None:
    """The twin of the module at the path; None, with what stands in the way added to the reasons, if it has none."""
    try:
        return _converted(module, path, reasons, causal)
    except Unfit as unfit:
        reasons.append(Reason(path, f"{type(module).__name__}: {unfit}"))
        return None


def _converted(module: Any, path: str, reasons: list[Reason], causal: bool) -> Module | None:
    kind = type(module)
    if ours(module):
        return module  # type: ignore[no-any-return]  # a Module
    if kind in LAYERS:
        return sharing(LAYERS[kind](module), module)
    if kind is plain.Sequential:
        return _sequential(module, path, reasons, causal)
    if kind is plain.TransformerEncoderLayer:
        return encoder_layer(module, causal)
    if kind is plain.TransformerEncoder:
        return _encoder(module, path, reasons, causal)
    if is_leaf(module):
        raise Unfit(f"{kind.__module__}.{kind.__qualname__} has no counterpart")
    leaves = Leaves(is_leaf, lambda part, where: converted(part, where, reasons, causal))
    return traced(module, path, reasons, leaves)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _sequential(module: Module, path: str, reasons: list[Reason], causal: bool) -> Module:
    twin = nn.Sequential()
    for name, part in module._modules.items():
        made = None if part is None else converted(part, _below(path, name), reasons, causal)
        if made is not None:
            twin.add_module(name, made)
    return sharing(twin, module)


def _encoder(module: Any, path: str, reasons: list[Reason], causal: bool) -> Module:
    twin = nn.TransformerEncoder([], None)
    for i, layer in enumerate(module.layers):
        made = converted(layer, _below(path, f"layers.{i}"), reasons, causal)
        if made is not None:
            twin.layers.append(made)
    if module.norm is not None:
        twin.norm = converted(module.norm, _below(path, "norm"), reasons, causal)
    return sharing(twin, module)
