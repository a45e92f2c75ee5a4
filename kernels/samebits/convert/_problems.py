"""What in a traced forward has no counterpart, in words."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx
from torch.nn import Module, Parameter

from samebits.convert._nodes import bound, calls, described, is_int, is_parts, is_size
from samebits.convert._rules import ALIASES, ATTRIBUTES, CHAINED, MOVES, RULES


def problems(module: Module, graph: fx.Graph) -> Iterator[str]:
    """What cannot be replaced, in words."""
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            yield from _of_call(module, node)
        if node.op == "get_attr":
            yield from _of_attribute(module, node, seen)
        if node.op == "call_module":
            yield from _of_layer(module, node, seen)
    held = {name for name, _ in module.named_parameters()}
    used = {name for name in held if any(name == s or name.startswith(f"{s}.") for s in seen)}
    yield from (f"parameter {name} is not used by forward" for name in sorted(held - used))


def _of_layer(module: Module, node: fx.Node, seen: set[str]) -> Iterator[str]:
    name, part = str(node.target), module.get_submodule(str(node.target))
    if name in seen and any(True for _ in part.parameters()):
        yield f"{name} is called more than once, so that its parameters are tied"
    seen.add(name)
    if len(node.args) != 1 or node.kwargs:
        yield f"{name} is called with more than one argument"
    if getattr(part, "inplace", False) and not _is_own(module, node.args[0]):
        yield f"{name} changes a value in place that may be used elsewhere"


def _is_own(module: Module, value: Any) -> bool:
    """Whether a value has one use and memory of its own, so that nobody sees whether it is changed in place."""
    if not isinstance(value, fx.Node) or len(value.users) > 1:
        return False
    if value.op == "call_module":
        return type(module.get_submodule(str(value.target))) not in ALIASES
    return calls(value, RULES)


def _of_attribute(module: Module, node: fx.Node, seen: set[str]) -> Iterator[str]:
    name = str(node.target)
    if not isinstance(operator.attrgetter(name)(module), Parameter):
        return
    if name in seen or len(node.users) > 1:
        yield f"parameter {name} is used more than once"
    seen.add(name)
    for user in node.users:
        if not calls(user, CHAINED):
            yield f"parameter {name} goes into {described(user)}, where its gradient would not be one chain"


def _of_call(module: Module, node: fx.Node) -> Iterator[str]:
    if node.target is getattr:
        if node.args[1] not in ATTRIBUTES:
            yield f"attribute .{node.args[1]} of a tensor has no counterpart"
    elif node.target is operator.getitem:
        yield from _of_item(node)
    elif node.target in RULES:
        yield from bound(node, RULES[node.target])[1]
        if node.target is operator.iadd and not _is_own(module, node.args[0]):
            yield f"{described(node)} changes a value in place that may be used elsewhere"
    elif node.target not in MOVES:
        yield f"{described(node)} has no counterpart"


def _of_item(node: fx.Node) -> Iterator[str]:
    value, index = node.args
    assert isinstance(value, fx.Node)
    if is_parts(value) and not (type(index) is int and index >= 0):
        yield f"the parts of {described(value)} can be taken by 0, 1, .. only"
    if not is_size(value) and not _is_plain(index):
        yield "only ints and slices can be an index, since elements that are taken twice have a sum as gradient"


def _is_plain(index: Any) -> bool:
    if isinstance(index, tuple):
        return all(_is_plain(part) for part in index)
    if isinstance(index, slice):
        return all(_is_plain(part) for part in (index.start, index.stop, index.step))
    return index is None or index is Ellipsis or type(index) is int or (isinstance(index, fx.Node) and is_int(index))
