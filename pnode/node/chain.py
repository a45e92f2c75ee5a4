"""Train at one VNode: forward here, Train downstream, backward here in order; each microbatch exactly once.

The front holds the chain: a worker never waits for the network. While the downstream VNode works, this VNode's worker
is free for other microbatches; the backward waits for its turn, so that every gradient is one ordered chain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pnode.errors import (
    BadRequest,
    Busy,
    DeadlineExceeded,
    PeerUnavailable,
    PNodeError,
    StaleFence,
    Unauthenticated,
    WorkerLost,
)
from pnode.node.hosted import HostedVNode
from pnode.node.routes import Route, Routes
from pnode.transport.api import TrainReply, TrainRequest
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.digests import request_digest
from pnode.transport.retry import Backoff
from pnode.transport.tensors import metas, payloads, unpack
from pnode.v1 import vnode_pb2
from pnode.vnode.ledger import Answer, Join, StepKey
from pnode.vnode.tensors import TensorBytes

log = logging.getLogger(__name__)

# Told when a downstream VNode does not answer: its fence as we knew it, a reason word, a sentence.
OnPeerLost = Callable[[vnode_pb2.Fence, str, str], None]
# Waits so many seconds, or returns True at once when the node is closing.
Wait = Callable[[float], bool]
_InputsAndTargets = tuple[Sequence[TensorBytes], Sequence[TensorBytes]]


class TrainChain:
    """The Train path of a node, for all of its VNodes."""

    def __init__(
        self,
        *,
        routes: Routes,
        max_whole_bytes: int,
        backoff: Callable[[], Backoff],
        wait: Wait,
        on_peer_lost: OnPeerLost,
    ) -> None:
        self._routes = routes
        self._max_whole_bytes = max_whole_bytes
        self._backoff = backoff
        self._wait = wait
        self._on_peer_lost = on_peer_lost

    def train(self, vnode: HostedVNode, parcel: TrainRequest, deadline: Deadline) -> TrainReply:
        """Answer one Train. A retry joins the call that runs, or is answered from the ledger."""
        with vnode.training():
            return self._train(vnode, parcel, deadline)

    def _train(self, vnode: HostedVNode, parcel: TrainRequest, deadline: Deadline) -> TrainReply:
        request = parcel.head
        key = StepKey(request.step, request.microbatch)
        inputs, targets = self._tensors(parcel)
        vnode.check_caller(request.caller)
        # What is handed over counts as the VNode's, so it may not be more than its spec says.
        rows = vnode.requests.microbatch(inputs, targets)
        admission = self._admit(vnode, parcel, key, deadline)
        if isinstance(admission, Answer):
            return _again(admission.reply)
        try:
            return self._run(vnode, request, key, (inputs, targets), rows, deadline)
        except BaseException:
            self._abandon(vnode, request, key)
            raise

    def _tensors(self, parcel: TrainRequest) -> _InputsAndTargets:
        inputs, targets = parcel.head.inputs, parcel.head.targets
        every = unpack([*inputs, *targets], parcel.payloads, max_bytes=self._max_whole_bytes)
        return every[: len(inputs)], every[len(inputs) :]

    def _admit(self, vnode: HostedVNode, parcel: TrainRequest, key: StepKey, deadline: Deadline) -> object:
        request, digest = parcel.head, request_digest(parcel)
        with vnode.changed:
            while True:
                vnode.check(request.fence)
                vnode.check_caller(request.caller)
                admission = vnode.ledger.admit(key, digest)
                if not isinstance(admission, Join):
                    deadline.caller.hand_over()
                    return admission
                if not deadline.pause(vnode.changed):
                    raise DeadlineExceeded(f"microbatch {key.microbatch} of step {key.step} is still running")

    def _run(
        self,
        vnode: HostedVNode,
        request: vnode_pb2.TrainRequest,
        key: StepKey,
        tensors: _InputsAndTargets,
        rows: int,
        deadline: Deadline,
    ) -> TrainReply:
        (inputs, targets), owns_loss = tensors, not vnode.spec.downstream
        step = {"step": key.step, "microbatch": key.microbatch}
        begin = {**step, "batch_rows": request.batch_rows, "num_inputs": len(inputs)}
        with vnode.commanding(request.fence, deadline):
            begun = vnode.command("begin", begin, [*inputs, *targets] if owns_loss else inputs, deadline)
        gradients: Sequence[TensorBytes] = ()
        loss_sum = 0.0
        if not owns_loss:
            loss_sum, gradients = self._downstream(vnode, request, begun.tensors, targets, rows, deadline.passed_down())
        self._await_turn(vnode, request, key, deadline)
        # Whoever has gone by now costs no backward; from here on it is carried through.
        deadline.check()
        with vnode.commanding(request.fence, deadline):
            finish = {**step, "want_input_gradients": request.want_input_gradients}
            finished = vnode.command("finish", finish, gradients, deadline)
            head = vnode_pb2.TrainReply(
                loss_sum=float(finished.fields["loss_sum"]) if owns_loss else loss_sum,
                duplicate=bool(finished.fields["duplicate"]),
                input_gradients=metas(finished.tensors),
            )
            reply = Parcel(head, payloads(finished.tensors))
            with vnode.changed:
                vnode.ledger.complete(key, reply, sum(map(len, reply.payloads)))
                vnode.changed.notify_all()
        return reply

    def _await_turn(
        self, vnode: HostedVNode, request: vnode_pb2.TrainRequest, key: StepKey, deadline: Deadline
    ) -> None:
        """Wait until every earlier microbatch of the step is in."""
        with vnode.changed:
            # Judged before every wait, the first too: a Restore may have come since the forward.
            while self._must_wait(vnode, request, key):
                if not deadline.pause(vnode.changed):
                    raise DeadlineExceeded(f"microbatches before {key.microbatch} of step {key.step} are missing")

    def _must_wait(self, vnode: HostedVNode, request: vnode_pb2.TrainRequest, key: StepKey) -> bool:
        vnode.check(request.fence)
        if vnode.state == vnode_pb2.VNODE_STATE_LOST:
            raise WorkerLost(f"VNode {vnode.spec.id!r} lost its worker while a microbatch waited for its turn")
        return not vnode.ledger.is_turn(key)

    def _abandon(self, vnode: HostedVNode, request: vnode_pb2.TrainRequest, key: StepKey) -> None:
        """Forget a microbatch that failed before its backward: a retry begins anew, unless the run has moved on."""
        try:
            with vnode.commanding(request.fence, Deadline.after(1.0)):
                if vnode.state == vnode_pb2.VNODE_STATE_SERVING:
                    vnode.command("discard", {"microbatch": key.microbatch}, (), Deadline.after(1.0))
        except PNodeError as error:
            log.debug("nothing to discard for %s: %s", key, error)
        with vnode.changed:
            if vnode.fence == request.fence:
                vnode.ledger.abandon(key)
            vnode.changed.notify_all()

    # Downstream

    def _downstream(
        self,
        vnode: HostedVNode,
        request: vnode_pb2.TrainRequest,
        outputs: Sequence[TensorBytes],
        targets: Sequence[TensorBytes],
        rows: int,
        deadline: Deadline,
    ) -> tuple[float, Sequence[TensorBytes]]:
        """The sum of the losses, and the gradients of our outputs."""
        passed = vnode_pb2.TrainRequest(
            caller=request.fence,
            step=request.step,
            microbatch=request.microbatch,
            num_microbatches=request.num_microbatches,
            batch_rows=request.batch_rows,
            want_input_gradients=True,
            inputs=metas(outputs),
            targets=metas(targets),
        )
        contents = payloads((*outputs, *targets))
        backoff = self._backoff()
        while True:
            vnode.check(request.fence)
            deadline.check()
            route: Route | None = None
            try:
                route = self._routes.find(vnode.spec.run, vnode.spec.downstream, request.fence.generation, deadline)
                passed.fence.CopyFrom(route.fence)
                below = route.vnode.train(Parcel(passed, contents), deadline)
                return below.head.loss_sum, self._gradients(vnode, below, rows)
            except (Busy, PeerUnavailable, StaleFence, Unauthenticated) as error:
                pause = self._pause(route, error, backoff)
                if pause >= deadline.left_s() or self._wait(pause):
                    raise

    def _gradients(self, vnode: HostedVNode, below: TrainReply, rows: int) -> Sequence[TensorBytes]:
        """Raises PeerUnavailable where they are not those of our outputs: the fault is the peer's, not our caller's."""
        try:
            gradients = unpack(below.head.input_gradients, below.payloads, max_bytes=self._max_whole_bytes)
            vnode.requests.gradients(gradients, rows)
        except BadRequest as error:
            raise PeerUnavailable(f"{vnode.spec.downstream!r} answered Train with garbage: {error.message}") from error
        return gradients

    def _pause(self, route: Route | None, error: PNodeError, backoff: Backoff) -> float:
        """How long to wait before the next try; raises `error` again where another try is of no use.

        Without a route it was the orchestrator that could not be asked.
        """
        if isinstance(error, Busy):
            return backoff.next_s(error)
        if route is not None:
            self._routes.forget(route.fence.run, route.fence.vnode)
        if route is not None and isinstance(error, PeerUnavailable):
            self._on_peer_lost(route.fence, error.reason, f"{route.address}: {error.message}")
        if backoff.attempts >= _TRIES:
            raise error
        return backoff.next_s(error)


def _again(reply: object) -> TrainReply:
    """A reply that was given before, marked as such."""
    if not isinstance(reply, Parcel):
        raise TypeError(f"the ledger of a VNode holds replies as parcels, not {type(reply).__name__}")
    again = vnode_pb2.TrainReply()
    again.CopyFrom(reply.head)
    again.duplicate = True
    return Parcel(again, reply.payloads)


# A peer that is gone stays gone until the run recovers, and recovery is the orchestrator's: few tries are enough.
_TRIES = 3
