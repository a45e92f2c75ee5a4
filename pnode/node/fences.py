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


def check_caller(ours: vnode_pb2.Fence, upstream: vnode_pb2.Fence, caller: vnode_pb2.Fence) -> None:
    """Accept only the upstream VNode as the orchestrator named it to us, in our generation; anyone where it named none.

    Raises StaleFence: an upstream VNode that was moved may still run where it was, and be a zombie without knowing.
    """
    if not upstream.epoch:
        return
    named = (caller.vnode, caller.generation, caller.epoch)
    if named != (upstream.vnode, ours.generation, upstream.epoch):
        raise StaleFence(
            f"VNode {ours.vnode!r} is called by {upstream.vnode!r} at generation {ours.generation}, epoch "
            f"{upstream.epoch}; the call came from {caller.vnode!r} at generation {caller.generation}, epoch "
            f"{caller.epoch}: the caller is a zombie"
        )


def copied(fence: vnode_pb2.Fence) -> vnode_pb2.Fence:
    """A fence of our own, that later changes to the message it came in cannot reach."""
    mine = vnode_pb2.Fence()
    mine.CopyFrom(fence)
    return mine
