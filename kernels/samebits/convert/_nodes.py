"""Questions about one node of a traced graph."""

from __future__ import annotations

import operator
from collections.abc import Container
from inspect import Parameter, signature
from typing import Any

from torch import fx

from samebits.convert._rules import QUESTIONS, TUPLES, Rule


def calls(node: Any, targets: Container[Any]) -> bool:
    """Whether a node is an operation among these, not a layer or an argument of the name."""
    return isinstance(node, fx.Node) and node.op in ("call_function", "call_method") and node.target in targets


def is_size(node: fx.Node) -> bool:
    return calls(node, {"size"}) or (calls(node, {getattr}) and node.args[1] == "shape")


def is_parts(node: fx.Node) -> bool:
    return calls(node, TUPLES)


def is_int(node: fx.Node) -> bool:
    """Whether a value is surely an int: an entry of a shape, or computed from such."""
    if calls(node, {operator.getitem}):
        return isinstance(node.args[0], fx.Node) and is_size(node.args[0]) and type(node.args[1]) is int
    if calls(node, {operator.floordiv}):
        return True
    return (calls(node, {"size"}) and len(node.args) == 2) or calls(node, {"dim", "numel"})


def asks(user: fx.Node) -> bool:
    """Whether a use needs no gradient, since it only asks about the shape."""
    return calls(user, QUESTIONS) or (calls(user, {getattr}) and user.args[1] in ("shape", "device"))


def described(node: fx.Node) -> str:
    target = node.target
    return f".{target}()" if isinstance(target, str) else f"{target.__module__}.{target.__name__}"


def bound(node: fx.Node, rule: Rule) -> tuple[tuple[Any, ...], list[str]]:
    """The arguments for the rule's function, in order, and what stands in the way."""
    given = dict(zip(rule.names, node.args, strict=False)) | dict(node.kwargs)
    wrong = [
        f"{described(node)} with {name}={given[name]!r} has no counterpart"
        for name in given
        if name not in rule.names
        or (name in rule.fixed and given[name] != rule.fixed[name])
        or (name in rule.fits and not rule.fits[name](given[name]))
    ]
    passed, parameters = [name for name in rule.names if name not in rule.fixed], signature(rule.function).parameters
    defaults = {name: own.default for name, own in zip(passed, parameters.values(), strict=True)}
    needed = [name for name in passed if name in rule.needed or defaults[name] is Parameter.empty]
    wrong += [f"{described(node)} needs {name}" for name in needed if given.get(name) is None]
    if len(node.args) > len(rule.names):
        wrong.append(f"{described(node)} has more arguments than samebits knows")
    while passed and passed[-1] not in given:
        passed.pop()
    return tuple(given.get(name, defaults[name]) for name in passed), wrong
