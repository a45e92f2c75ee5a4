"""The VNodes of a run in one generation, as a driver calls them: Train, Apply, Forward, Describe."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Executor, Future, wait
from dataclasses import dataclass
from typing import TypeVar

from pnode.client.batch import Batch
from pnode.errors import BadRequest, Busy, DeadlineExceeded, PeerUnavailable, PNodeError, StaleFence
from pnode.transport.api import ForwardReply, ForwardRequest, TrainReply, VNodesApi
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.retry import Backoff, retry
from pnode.transport.tensors import metas, payloads, unpack
from pnode.v1 import orchestrator_pb2, spec_pb2, vnode_pb2
from pnode.vnode import sizes
from pnode.vnode.tensors import TensorBytes

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """One VNode where it is now."""

    fence: vnode_pb2.Fence
    vnode: VNodesApi


# Told of a call that failed: the fence of the VNode called, and how.
OnFailure = Callable[[vnode_pb2.Fence, PNodeError], None]


class Pipeline:
    """All VNodes in model order, under the fences of one generation.

    specs: of the same VNodes. What the narrowest of them admits is under way at once: more would only be refused, and
    asked again after a pause. call_s: the deadline of each call. grace_s: how long the others have to end when one has
    failed. on_failure: told at once, from the thread of the call that failed.
    """

    def __init__(
        self,
        status: orchestrator_pb2.RunStatus,
        vnodes: Callable[[str], VNodesApi],
        threads: Executor,
        *,
        specs: Sequence[spec_pb2.VNodeSpec],
        call_s: float,
        grace_s: float,
        max_whole_bytes: int,
        backoff: Callable[[], Backoff],
        closing: threading.Event,
        on_failure: OnFailure,
    ) -> None:
        self.generation = status.generation
        self._places = [Place(location.fence, vnodes(location.address)) for location in status.locations]
        self._threads = threads
        self._specs = {spec.id: spec for spec in specs}
        self._window = min((spec.window for spec in specs), default=1)
        self._call_s = call_s
        self._grace_s = grace_s
        self._max_whole_bytes = max_whole_bytes
        self._backoff = backoff
        self._closing = closing
        self._on_failure = on_failure

    def versions(self) -> list[int]:
        """The version of every VNode."""
        return [reply.version for reply in self._each(self._describe)]

    def _describe(self, place: Place, deadline: Deadline) -> vnode_pb2.DescribeReply:
        request = vnode_pb2.DescribeRequest(run=place.fence.run, vnode=place.fence.vnode)
        reply = place.vnode.describe(request, deadline)
        if reply.fence != place.fence:
            raise StaleFence(
                f"VNode {place.fence.vnode!r} stands at generation {reply.fence.generation}, epoch {reply.fence.epoch}"
            )
        return reply

    def train(self, step: int, batch: Batch, num_microbatches: int) -> None:
        """All microbatches of a step into the first VNode: a window of them at once, the next as each is done.

        Backwards run in microbatch order, so whichever call ends moves the window on by one. Returns when all are in.
        """
        first = self._places[0]
        calls: list[Future[TrainReply]] = []
        for index, part in enumerate(batch.split(num_microbatches)):
            if not self._await_room(calls):
                break
            request = self._train_request(first, step, index, part, batch, num_microbatches)
            calls.append(self._threads.submit(self._call, first, request))
        _all(calls, self._call_s, self._grace_s)
        # Those that were waited for may have ended late, and well; what was not sent is missing all the same, and an
        # Apply now would be one that only some VNodes can follow.
        if len(calls) < num_microbatches:
            raise DeadlineExceeded(f"only {len(calls)} of {num_microbatches} microbatches of step {step} were sent")

    def _await_room(self, calls: Sequence[Future[TrainReply]]) -> bool:
        """Wait until fewer than a window of calls run; False where one has failed or none has ended in its time."""
        running = [call for call in calls if not call.done()]
        if len(running) >= self._window:
            wait(running, timeout=self._call_s, return_when=FIRST_COMPLETED)
        running = [call for call in calls if not call.done()]
        failed = any(call.done() and call.exception(0) is not None for call in calls)
        return len(running) < self._window and not failed

    def _train_request(
        self, first: Place, step: int, microbatch: int, part: Batch, batch: Batch, num_microbatches: int
    ) -> Callable[[Place, Deadline], TrainReply]:
        request = vnode_pb2.TrainRequest(
            fence=first.fence,
            step=step,
            microbatch=microbatch,
            num_microbatches=num_microbatches,
            batch_rows=batch.num_rows,
            want_input_gradients=False,
            inputs=metas(part.inputs),
            targets=metas(part.targets),
        )
        parcel = Parcel(request, payloads((*part.inputs, *part.targets)))
        return lambda place, deadline: place.vnode.train(parcel, deadline)

    def apply(self, step: int, num_microbatches: int) -> float | None:
        """The optimizer step everywhere; returns the batch's mean loss. May be asked again."""

        def ask(place: Place, deadline: Deadline) -> vnode_pb2.ApplyReply:
            request = vnode_pb2.ApplyRequest(fence=place.fence, step=step, num_microbatches=num_microbatches)
            return place.vnode.apply(request, deadline)

        last = self._each(ask)[-1]
        return last.loss if last.HasField("loss") else None

    def forward(self, rows: Batch) -> list[TensorBytes]:
        """Inference through all VNodes, one after the other."""
        tensors: Sequence[TensorBytes] = rows.inputs
        for place in self._places:
            most = sizes.output_bytes(self._specs[place.fence.vnode], rows.num_rows)
            request = vnode_pb2.ForwardRequest(fence=place.fence, inputs=metas(tensors), max_output_bytes=most)
            reply = self._call(place, _forwarding(Parcel(request, payloads(tensors))))
            tensors = self._unpacked(place, reply)
        return list(tensors)

    def _unpacked(self, place: Place, reply: ForwardReply) -> list[TensorBytes]:
        try:
            return unpack(reply.head.outputs, reply.payloads, max_bytes=self._max_whole_bytes)
        except BadRequest as error:
            raise PeerUnavailable(f"{place.fence.vnode!r} answered Forward with garbage: {error.message}") from error

    def _each(self, ask: Callable[[Place, Deadline], T]) -> list[T]:
        """Ask every VNode at once; answers in model order."""
        return _all(
            [self._threads.submit(self._call, place, ask) for place in self._places], self._call_s, self._grace_s
        )

    def _call(self, place: Place, ask: Callable[[Place, Deadline], T]) -> T:
        """One call; a busy VNode is asked again while the deadline lasts, one that does not answer a few times."""
        deadline = Deadline.after(self._call_s)
        try:
            return retry(
                lambda: ask(place, deadline),
                deadline,
                self._backoff(),
                self._closing.wait,
                on=(Busy,),
                few=(PeerUnavailable,),
            )
        except PNodeError as error:
            self._on_failure(place.fence, error)
            raise


def _forwarding(request: ForwardRequest) -> Callable[[Place, Deadline], ForwardReply]:
    return lambda place, deadline: place.vnode.forward(request, deadline)


def _all(futures: Sequence[Future[T]], call_s: float, grace_s: float) -> list[T]:
    """Results in order, within `call_s`. The first failure is raised; the other calls have `grace_s` to end first.

    One that waits for its turn behind the call that failed would end with its deadline only. It may be left alone:
    the same call, sent again, joins it.
    """
    _, left = wait(futures, timeout=call_s, return_when=FIRST_EXCEPTION)
    if left:
        _, left = wait(left, timeout=grace_s)
    failed = [future for future in futures if future.done() and future.exception(0) is not None]
    if left and not failed:
        raise DeadlineExceeded(f"{len(left)} calls had not ended at their deadline")
    return [future.result(0) for future in failed or futures]
