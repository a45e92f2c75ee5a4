"""A forward of one's own, traced by torch.fx and rewritten to samebits, or refused."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import fx
from torch.nn import Module

from samebits.convert._errors import Reason
from samebits.convert._problems import problems
from samebits.convert._rewrite import fork_all, join_items, replace
from samebits.convert._trace import graph_of


class Leaves(NamedTuple):
    """What a trace leaves to others."""

    stops: Callable[[Module], bool]
    convert: Callable[[Module, str], Module | None]


def traced(module: Module, path: str, reasons: list[Reason], leaves: Leaves) -> Module | None:
    """The module's forward over samebits, as a GraphModule; None, with reasons added, if that cannot be."""
    try:
        graph = graph_of(module, leaves.stops)
    except Exception as error:  # noqa: BLE001  # the user's code runs here, on stand-ins for tensors
        text = str(error).partition("\n")[0]
        reasons.append(Reason(path, f"{type(module).__name__}.forward cannot be traced: {text}"))
        return None
    found = [Reason(path, text) for text in problems(module, graph)]
    root = dict(_attributes(module, graph))
    for name in dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module"):
        made = leaves.convert(module.get_submodule(name), f"{path}.{name}" if path else name)
        if made is not None:
            root[name] = made
    reasons += found
    if reasons:
        return None
    join_items(graph)
    fork_all(graph)
    replace(graph)
    graph.lint()
    twin = fx.GraphModule(root, graph, type(module).__name__)
    twin.training = module.training
    order(twin, module)
    return twin


def order(twin: Module, old: Module) -> None:
    """Have parameters and parts in the old module's order: norms and optimizers go by it. The trace has that of use."""
    for held in ("_parameters", "_buffers", "_modules"):
        there: dict[str, Any] = getattr(twin, held)
        parts = [(name, there.pop(name)) for name in list(getattr(old, held)) if name in there]
        there.update(parts)
    for name, part in twin._modules.items():
        if part is not None and type(part) is Module:  # holds what lies deeper, and has no forward
            order(part, old.get_submodule(name))


def _attributes(module: Module, graph: fx.Graph) -> Iterator[tuple[str, Any]]:
    for node in graph.nodes:
        if node.op == "get_attr":
            yield str(node.target), operator.attrgetter(str(node.target))(module)
