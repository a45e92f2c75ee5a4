"""Fencing tokens: who may still speak. A lower generation or epoch is a zombie's; a higher one is news to us."""

from __future__ import annotations

from pnode.errors import StaleFence
from pnode.v1 import vnode_pb2


def check(ours: vnode_pb2.Fence, theirs: vnode_pb2.Fence) -> None:
    """Accept only a call under exactly our generation and epoch. Raises StaleFence, saying who is behind."""
    if (theirs.generation, theirs.epoch) == (ours.generation, ours.epoch):
        return
    older = theirs.generation < ours.generation or theirs.epoch < ours.epoch
    who = "the caller is a zombie" if older else "this node has not been told of it yet"
    raise StaleFence(
        f"VNode {ours.vnode!r} is at generation {ours.generation}, epoch {ours.epoch}; "
        f"the call came for generation {theirs.generation}, epoch {theirs.epoch}: {who}"
    )


def copied(fence: vnode_pb2.Fence) -> vnode_pb2.Fence:
    """A fence of our own, that later changes to the message it came in cannot reach."""
    mine = vnode_pb2.Fence()
    mine.CopyFrom(fence)
    return mine
