"""Forward calls to one VNode, joined along the batch axis where they wait for its worker anyway.

Whoever gets the turn takes along what waits behind it, up to `limits.max_rows`; nobody ever waits for more to come. The
profile's contract makes a row's bits independent of its batch mates, so the replies are those of single calls, to the
bit. A profile that does not promise that is never joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pnode.errors import BadRequest, DeadlineExceeded, PNodeError
from pnode.node.hosted import HostedVNode
from pnode.node.workers import Reply
from pnode.observe.counters import Counters
from pnode.transport.api import ForwardReply
from pnode.transport.codec import Parcel, sealed
from pnode.transport.deadline import Deadline
from pnode.transport.tensors import metas
from pnode.transport.turns import Bounds
from pnode.v1 import vnode_pb2
from pnode.vnode import bounds
from pnode.vnode.tensors import TensorBytes

# Counted: calls whose Forward ran in one command with others.
JOINED = "forward.joined"


@dataclass
class Waiting:
    """One Forward that waits for the worker. rows: 0 where it has to run alone."""

    fence: vnode_pb2.Fence
    inputs: Sequence[TensorBytes]
    deadline: Deadline
    rows: int
    reply: ForwardReply | None = None
    error: PNodeError | None = None

    def settled(self) -> ForwardReply:
        """Its reply. Raises its error."""
        if self.reply is None:
            raise self.error or DeadlineExceeded("the VNode was still busy with this call at its deadline")
        return self.reply


def forward(
    vnode: HostedVNode,
    fence: vnode_pb2.Fence,
    inputs: Sequence[TensorBytes],
    deadline: Deadline,
    *,
    queue: Bounds,
    counters: Counters,
) -> ForwardReply:
    """Run one Forward, with others where that is possible. Raises BadRequest, or Busy where the queue is full."""
    rows = vnode.requests.forward(inputs)
    mine = Waiting(fence, inputs, deadline, rows if vnode.spec.profile in bounds.ROW_INDEPENDENT_PROFILES else 0)
    ticket = vnode.turns.ask(deadline.caller.name, offer=mine if mine.rows else None, bounds=queue)
    if vnode.turns.wait(ticket, deadline):
        along = []
        try:
            deadline.check()
            group = _Group(mine, int(vnode.spec.limits.max_rows))
            along = vnode.turns.take_along(group.take) if mine.rows else []
            _run(vnode, group.members, deadline, counters)
        finally:
            vnode.turns.give(ticket)
            for each in along:
                each.finish()
    return mine.settled()


class _Group:
    """Those that run together: as many as the spec has rows for."""

    def __init__(self, first: Waiting, max_rows: int) -> None:
        self.members = [first]
        self._free = max_rows - first.rows

    def take(self, offer: object) -> bool:
        """Whether this one comes along."""
        if not isinstance(offer, Waiting) or offer.rows > self._free or offer.deadline.over:
            return False
        self._free -= offer.rows
        self.members.append(offer)
        return True


def _run(vnode: HostedVNode, group: Sequence[Waiting], deadline: Deadline, counters: Counters) -> None:
    """Every member gets its reply or its own error. The turn is held."""
    members = [each for each in group if _admitted(vnode, each)]
    if len(members) > 1 and _run_joined(vnode, members, deadline):
        counters.add(JOINED, len(members))
        return
    for each in members:
        try:
            each.reply = vnode.forward(each.inputs, lambda reply: _sealed(vnode, reply.tensors), deadline)
        except PNodeError as error:
            each.error = error


def _admitted(vnode: HostedVNode, each: Waiting) -> bool:
    """A Restore may have come while it waited."""
    try:
        vnode.check(each.fence)
    except PNodeError as error:
        each.error = error
        return False
    return True


def _run_joined(vnode: HostedVNode, members: Sequence[Waiting], deadline: Deadline) -> bool:
    """One command for all of them. False where something in it was refused: then each has to run alone."""

    def read(reply: Reply) -> list[ForwardReply]:
        return [_sealed(vnode, outputs) for outputs in _parts(reply, [each.rows for each in members])]

    try:
        replies = vnode.forward(_joined([each.inputs for each in members]), read, deadline)
    except BadRequest:
        return False
    except PNodeError as error:
        for each in members:
            each.error = error
        return True
    for each, reply in zip(members, replies, strict=True):
        each.reply = reply
    return True


def _sealed(vnode: HostedVNode, outputs: Sequence[TensorBytes]) -> ForwardReply:
    """The reply as it will be sent: the one copy out of the worker's memory, made while the turn is held."""
    head = vnode_pb2.ForwardReply(version=vnode.ledger.version, outputs=metas(outputs))
    return sealed(Parcel(head, [output.payload for output in outputs]))


def _joined(every: Sequence[Sequence[TensorBytes]]) -> list[TensorBytes]:
    """The same tensors of all calls, one below the other: raw C-order bytes have their rows one after the other."""
    joined = []
    for first in every[0]:
        parts = [next(given for given in inputs if given.name == first.name) for inputs in every]
        rows = sum(part.shape[0] for part in parts)
        joined.append(first._replace(shape=(rows, *first.shape[1:]), payload=b"".join(part.payload for part in parts)))
    return joined


def _parts(reply: Reply, rows: Sequence[int]) -> list[list[TensorBytes]]:
    """The reply of each call, by its rows."""
    total = sum(rows)
    for output in reply.tensors:
        if not output.shape or output.shape[0] != total:
            raise PNodeError(f"a worker gave {list(output.shape)} for {total} rows")
    ends = list(accumulate(rows))
    return [
        [_rows(output, end - count, end) for output in reply.tensors] for end, count in zip(ends, rows, strict=True)
    ]


def _rows(output: TensorBytes, begin: int, end: int) -> TensorBytes:
    row_bytes = len(output.payload) // output.shape[0]
    part = memoryview(output.payload)[begin * row_bytes : end * row_bytes]
    return output._replace(shape=(end - begin, *output.shape[1:]), payload=part)
