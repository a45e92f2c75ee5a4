"""A traced graph without problems, rewritten: values that are used several times forked, operations replaced."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from samebits.convert._nodes import asks, bound, calls, is_int, is_parts, is_size
from samebits.convert._rules import RULES
from samebits.fork import fork


def fan_out(value: Any, n: int) -> tuple[Any, ...]:
    """What n consumers get: forks of a float tensor; anything else has no gradient to sum."""
    if isinstance(value, Tensor) and value.dtype is torch.float32:
        return fork(value, n)
    return (value,) * n


def join_items(graph: fx.Graph) -> None:
    """One node for each part of a chunk or split, however often it is taken, so that its uses are counted."""
    first: dict[tuple[Any, Any], fx.Node] = {}
    for node in list(graph.nodes):
        if calls(node, {operator.getitem}) and is_parts(node.args[0]):
            kept = first.setdefault((node.args[0], node.args[1]), node)
            if kept is not node:
                node.replace_all_uses_with(kept)
                graph.erase_node(node)


def fork_all(graph: fx.Graph) -> None:
    """Give every use of a value that is used several times a fork of its own, in the order of the trace."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        users = sorted((user for user in node.users if not asks(user)), key=place.__getitem__)
        uses = [_count(user, node) for user in users]
        total = len([1 for count in uses for _ in range(count)])
        if total < 2 or is_parts(node) or is_size(node) or is_int(node):
            continue
        with graph.inserting_after(node):
            forked = graph.call_function(fan_out, (node, total))
        shares = iter(range(total))
        for user in users:
            _redirect(graph, user, node, forked, shares)


def _count(user: fx.Node, node: fx.Node) -> int:
    found: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), lambda each: found.append(each) if each is node else None)
    return len(found)


def _redirect(graph: fx.Graph, user: fx.Node, node: fx.Node, forked: fx.Node, shares: Iterator[int]) -> None:
    def share(each: fx.Node) -> fx.Node:
        if each is not node:
            return each
        with graph.inserting_before(user):
            return graph.call_function(operator.getitem, (forked, next(shares)))

    args, kwargs = fx.map_arg((user.args, user.kwargs), share)
    user.args, user.kwargs = args, kwargs


def replace(graph: fx.Graph) -> None:
    """Put samebits' functions in place of torch's."""
    for node in list(graph.nodes):
        if node.op in ("call_function", "call_method") and node.target in RULES:
            rule = RULES[node.target]
            arguments, _ = bound(node, rule)
            node.op, node.target, node.args, node.kwargs = "call_function", rule.function, arguments, {}
