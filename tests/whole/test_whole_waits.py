"""Nothing waits for ever: every call that can block has a bound, or stands here with the reason why it needs none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# How many positional arguments a blocking call has with its bound: without it, and without the keyword, it may wait for
# ever. `join` of a text or a path has one argument too, and a dictionary's `get`.
BOUND_AT = {"wait": 1, "join": 1, "result": 1, "get": 1, "acquire": 2, "wait_for": 2, "poll": 1, "exception": 1}
KEYWORDS = {"timeout", "blocking"}

# By file and source: who may wait for ever, and why.
ALLOWED = {
    ("pnode/node/main.py", "node.drain_asked.wait()"): "a node serves until it is told to leave",
    ("pnode/node/main.py", "node.join()"): "bounded by node.join_s",
    ("pnode/roles.py", "asked.wait()"): "an orchestrator serves until it is told to leave",
    ("pnode/node/reports.py", "self._queue.get()"): "a thread that waits for something to do; close() gives it an end",
    ("pnode/devnet/fleet.py", "self._returning.get()"): "a thread that waits for something to do; the end is queued",
    ("pnode/devnet/child.py", "self._process.wait()"): "a thread of its own waits for a process to end, however long",
    ("pnode/devnet/child.py", "self.join()"): "bounded by itself",
    ("pnode/sandbox/zygote.py", "self._poll.poll()"): "a zygote serves its front until that hangs up",
    ("pnode/transport/callers.py", "_caller.get()"): "a context variable, for which nobody waits",
    ("pnode/transport/retry.py", "wait(pause_s)"): "the pause itself",
    ("pnode/transport/remote.py", "call.result()"): "gRPC ends the call at the timeout that it was sent with",
}


def calls(source: str) -> Iterator[tuple[str, int]]:
    """The unbounded waits in a file: their source and line."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        # concurrent.futures' own wait stands as a bare name.
        is_bare = isinstance(node.func, ast.Name) and node.func.id == "wait" and is_unbounded(node, "wait_for")
        if is_bare or (isinstance(node.func, ast.Attribute) and is_unbounded(node, node.func.attr)):
            yield ast.unparse(node), node.lineno


def is_unbounded(node: ast.Call, name: str) -> bool:
    if name not in BOUND_AT or ast.unparse(node.func) == "select.poll":
        return False
    bounded = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg in KEYWORDS}
    if bounded:
        return any(isinstance(bound, ast.Constant) and bound.value is None for bound in bounded.values())
    bounds = node.args[BOUND_AT[name] - 1 :]
    return not bounds or any(isinstance(bound, ast.Constant) and bound.value is None for bound in bounds)


def test_every_wait_has_a_bound() -> None:
    found = {
        (str(path.relative_to(ROOT)), source): line
        for path in sorted((ROOT / "pnode").rglob("*.py"))
        for source, line in calls(path.read_text())
    }
    wrong = {f"{path}:{line}: {source}" for (path, source), line in found.items() if (path, source) not in ALLOWED}
    assert wrong == set()
    assert set(ALLOWED) <= set(found), "what is not there any more needs no leave"


UNBOUNDED = (
    "event.wait()",
    "thread.join()",
    "future.result()",
    "q.get()",
    "lock.acquire()",
    "c.wait_for(f)",
    "q.get(timeout=None)",
    "event.wait(None)",
    "poll.poll()",
    "wait(futures)",
    "wait(futures, return_when=FIRST)",
)
BOUNDED = (
    "event.wait(1)",
    "', '.join(words)",
    "d.get(key)",
    "lock.acquire(timeout=3)",
    "lock.acquire(blocking=False)",
    "c.wait_for(f, 1)",
    "wait(futures, timeout=2)",
    "select.poll()",
)


@pytest.mark.parametrize("source", UNBOUNDED)
def test_a_wait_without_a_bound_is_found(source: str) -> None:
    assert [found for found, _ in calls(source)] == [source]


@pytest.mark.parametrize("source", BOUNDED)
def test_a_bounded_wait_is_none(source: str) -> None:
    assert list(calls(source)) == []
