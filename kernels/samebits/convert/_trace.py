"""The trace of a forward: which operations it calls, in which order, on which values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import Module, Parameter

from samebits.convert._nodes import calls


class _Proxy(fx.Proxy):
    """A stand-in that notices `+=` and the like; torch.fx would take them for operations that make a new value."""


def _in_place(name: str) -> Callable[[fx.Proxy, Any], Any]:
    target = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", target, (self, other), {})


for _operation in [
    "iadd",
    "iand",
    "ifloordiv",
    "ilshift",
    "imatmul",
    "imod",
    "imul",
    "ior",
    "ipow",
    "irshift",
    "isub",
    "itruediv",
    "ixor",
]:
    setattr(_Proxy, f"__{_operation}__", _in_place(_operation))


class _Tracer(fx.Tracer):
    def __init__(self, stops: Callable[[Module], bool]) -> None:
        super().__init__()
        self._stops = stops

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return self._stops(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a chunk are as many as it was asked for; of other values the trace cannot know."""
        node = obj.node
        if calls(node, {"chunk", torch.chunk}) and len(node.args) > 1 and type(node.args[1]) is int:
            return iter([obj[i] for i in range(node.args[1])])  # type: ignore[index]  # fx gives it one
        return super().iter(obj)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, Parameter) and a not in self.tensor_attrs:
            raise NotImplementedError("a tensor is made in forward; register it as a buffer")
        return super().create_arg(a)


def graph_of(module: Module, stops: Callable[[Module], bool]) -> fx.Graph:
    """The trace, once as in training and once as not, which must be alike. Every module's mode is left as it was."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        graphs = [_Tracer(stops).trace(module.train(mode)) for mode in (True, False)]
    finally:
        for part, mode in modes:
            part.training = mode
    if str(graphs[0]) != str(graphs[1]):
        raise ValueError("its forward does not do the same in training and outside of it")
    return graphs[0]
