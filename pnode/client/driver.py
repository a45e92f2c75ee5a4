"""The driver of a run: sends the steps, and after a loss replays from what the orchestrator restored.

It holds the run's lease and no other truth: which step comes next is read from the VNodes, and a batch is a pure
function of its step. So a driver may die at any moment, and another one goes on.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pnode.client import events
from pnode.client.batch import Batch
from pnode.client.lease import RunLease
from pnode.client.pipeline import Pipeline
from pnode.errors import (
    BadRequest,
    Busy,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    LeaseLost,
    PNodeError,
    StepMismatch,
    StoreUnavailable,
    Unavailable,
)
from pnode.transport.api import OrchestratorApi, RunsApi, VNodesApi
from pnode.transport.deadline import Deadline
from pnode.transport.retry import Backoff
from pnode.v1 import orchestrator_pb2, vnode_pb2
from pnode.vnode.tensors import TensorBytes

log = logging.getLogger(__name__)
T = TypeVar("T")

# Neither waiting nor recovery mends these.
_FATAL = (BadRequest, Conflict, ConfigError, LeaseLost)
_REPORT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class DriverSettings:
    """patience_s: how long a run may go without progress; call_s: the deadline of one call to a VNode.

    grace_s: when one call of a step has failed, the others have so long to end before everything is sent again.
    """

    steps: int
    num_microbatches: int
    checkpoint_every: int = 0
    holder: str = "driver"
    call_s: float = 60.0
    grace_s: float = 1.0
    patience_s: float = 300.0
    backoff_s: float = 0.05
    backoff_cap_s: float = 1.0
    max_whole_bytes: int = 256 << 20


class Driver:
    """Drives one run from wherever it stands to its last step. Use as a context, or call `close`.

    vnodes: from an address to the VNodes served there. batch: the whole batch of a step. on_event: told what happens,
    from the thread that runs `train`.
    """

    def __init__(
        self,
        spec: orchestrator_pb2.RunSpec,
        settings: DriverSettings,
        batch: Callable[[int], Batch],
        *,
        runs: RunsApi,
        orchestrator: OrchestratorApi,
        vnodes: Callable[[str], VNodesApi],
        on_event: Callable[[events.Event], None] = lambda event: None,
    ) -> None:
        self._settings = settings
        self._batch = batch
        self._orchestrator = orchestrator
        self._vnodes = vnodes
        self._tell = on_event
        self._closing = threading.Event()
        self._rng = random.Random()  # noqa: S311 - jitter, nothing secret
        self._lease = RunLease(runs, spec, settings.holder, closing=self._closing, backoff=self._backoff)
        self._specs = tuple(spec.vnodes)
        # Calls that were left behind may still wait for their deadlines while others are sent.
        num_threads = 4 * max(settings.num_microbatches, len(spec.vnodes))
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="driver")
        self._reports = ThreadPoolExecutor(1, thread_name_prefix="reports")
        self._reported: set[str] = set()
        self._pipeline: Pipeline | None = None
        self._deadline = Deadline.after(settings.patience_s)

    # Life

    def close(self) -> None:
        """Stop; the lease runs out by itself, and the run stays as it is. Calls under way end first.

        Safe to call twice.
        """
        self._closing.set()
        self._lease.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._reports.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # What it does

    def train(self) -> orchestrator_pb2.CheckpointReply:
        """Train to the last step; returns the final checkpoint: a record of every VNode, in model order.

        Raises what recovery does not mend, or the last error after `patience_s` without progress.
        """
        return self._persist(self._train_on)

    def forward(self, rows: Batch) -> list[TensorBytes]:
        """Inference through the run's VNodes, at the version where they stand."""
        return self._persist(lambda pipeline: pipeline.forward(rows))

    def finish(self) -> None:
        """The run is done: its VNodes are released, its checkpoints stay."""
        self._lease.finish(Deadline.after(self._settings.patience_s))

    # Steps

    def _train_on(self, pipeline: Pipeline) -> orchestrator_pb2.CheckpointReply:
        settings = self._settings
        version = self._resume(pipeline)
        while version < settings.steps:
            version = self._step(pipeline, version)
            every = settings.checkpoint_every
            if every and version % every == 0 and version < settings.steps:
                self._checkpoint_on_the_way(pipeline, version)
        return self._checkpoint(pipeline, version)

    def _resume(self, pipeline: Pipeline) -> int:
        """The version from which to go on, after finishing an Apply that did not reach all VNodes."""
        versions = pipeline.versions()
        low, high = min(versions), max(versions)
        if high > low + 1:
            raise StepMismatch(f"the VNodes stand at versions {versions}: no driver can go on from there")
        if high == low + 1:
            pipeline.apply(low, self._settings.num_microbatches)
        return high

    def _step(self, pipeline: Pipeline, step: int) -> int:
        started = time.monotonic()
        self._lease.check()
        self._tell(events.StepStarted(step, pipeline.generation))
        pipeline.train(step, self._batch(step), self._settings.num_microbatches)
        loss = pipeline.apply(step, self._settings.num_microbatches)
        self._progressed()
        self._tell(events.StepDone(step, loss, pipeline.generation, time.monotonic() - started))
        return step + 1

    def _checkpoint_on_the_way(self, pipeline: Pipeline, version: int) -> None:
        try:
            self._checkpoint(pipeline, version)
        except (Busy, StoreUnavailable, DeadlineExceeded, StepMismatch) as error:
            # A later one may succeed; until then a recovery replays more.
            self._tell(events.CheckpointMissed(version, f"{error.reason}: {error.message}"))

    def _checkpoint(self, pipeline: Pipeline, version: int) -> orchestrator_pb2.CheckpointReply:
        deadline = Deadline.after(self._settings.call_s)
        reply = self._lease.checkpoint(pipeline.generation, version, cursor=version, deadline=deadline)
        self._progressed()
        self._tell(events.Checkpointed(version, reply.manifest_sha256))
        return reply

    # Losses

    def _persist(self, work: Callable[[Pipeline], T]) -> T:
        """What `work` returns, begun again after every loss that recovery mends."""
        backoff = self._backoff()
        self._progressed()
        while True:
            pipeline = self._serving_pipeline(backoff)
            try:
                return work(pipeline)
            except PNodeError as error:
                self._interrupted(pipeline, error)
            if self._closing.wait(backoff.next_s()):
                raise Unavailable("the driver was closed")

    def _interrupted(self, pipeline: Pipeline, error: PNodeError) -> None:
        """Raises `error` again where it is fatal, or patience is at its end."""
        self._pipeline = None
        self._reported.clear()
        if isinstance(error, _FATAL) or self._deadline.passed:
            raise error
        log.info("generation %d was interrupted: %s: %s", pipeline.generation, error.reason, error.message)
        self._tell(events.Interrupted(pipeline.generation, error.reason, error.message))

    def _serving_pipeline(self, backoff: Backoff) -> Pipeline:
        """The run as it serves now; waits while it is placed or recovers."""
        if self._pipeline is None:
            status = self._await_running(backoff)
            self._pipeline = Pipeline(
                status,
                self._vnodes,
                self._threads,
                specs=self._specs,
                call_s=self._settings.call_s,
                grace_s=self._settings.grace_s,
                max_whole_bytes=self._settings.max_whole_bytes,
                backoff=self._backoff,
                closing=self._closing,
                on_failure=self._report,
            )
            places = tuple((at.fence.vnode, at.node_uuid, at.address) for at in status.locations)
            self._tell(events.Serving(status.generation, status.version, places))
        return self._pipeline

    def _await_running(self, backoff: Backoff) -> orchestrator_pb2.RunStatus:
        """Wait until the run serves. Raises why it does not, once patience is at its end."""
        told = ""
        while True:
            found = self._status()
            if isinstance(found, PNodeError):
                why = f"{found.reason}: {found.message}"
            else:
                _check_goes_on(found)
                if found.state == orchestrator_pb2.RUN_STATE_RUNNING:
                    return found
                why = found.message
            # Told before patience is judged: whoever watches learns why, even where the first answer came too late.
            if why != told:
                told = why
                self._tell(events.Waiting(why))
            if self._deadline.passed:
                late = Unavailable(f"the run did not serve for {self._settings.patience_s:g} s: {why}")
                raise found if isinstance(found, PNodeError) else late
            if self._closing.wait(backoff.next_s(found if isinstance(found, PNodeError) else None)):
                raise Unavailable("the driver was closed")

    def _status(self) -> orchestrator_pb2.RunStatus | PNodeError:
        """How the run stands, or what waiting may mend: no orchestrator, no room, another driver's lease."""
        submitted = self._lease.held
        try:
            return self._lease.status(Deadline.after(self._settings.call_s))
        except (Unavailable, DeadlineExceeded, Busy) as error:
            return error
        except LeaseLost as error:
            # Before we ever held it another driver may be about to lose it, and says when; afterwards, or where a later
            # life of ours has it, we are the one who lost it.
            if submitted or error.retry_after_s is None:
                raise
            return error

    def _report(self, fence: vnode_pb2.Fence, error: PNodeError) -> None:
        """Tell the orchestrator of a VNode that does not answer, once for each interruption; nobody waits for it."""
        if not isinstance(error, Unavailable | DeadlineExceeded) or fence.vnode in self._reported:
            return
        self._reported.add(fence.vnode)
        request = orchestrator_pb2.ReportFailureRequest(fence=fence, reason=error.reason, message=error.message)
        try:
            self._reports.submit(self._send_report, request)
        except RuntimeError:
            log.debug("not reported, for the driver is closing: %s", error)

    def _send_report(self, request: orchestrator_pb2.ReportFailureRequest) -> None:
        try:
            self._orchestrator.report_failure(request, Deadline.after(_REPORT_S))
        except PNodeError as error:
            log.info("VNode %s could not be reported: %s", request.fence.vnode, error)

    def _progressed(self) -> None:
        self._deadline = Deadline.after(self._settings.patience_s)

    def _backoff(self) -> Backoff:
        return Backoff(self._settings.backoff_s, cap_s=self._settings.backoff_cap_s, rng=self._rng)


def _check_goes_on(status: orchestrator_pb2.RunStatus) -> None:
    """Raise PNodeError for a run that will never serve again."""
    if status.state == orchestrator_pb2.RUN_STATE_FAILED:
        raise PNodeError(f"run {status.id} has failed: {status.message}")
    if status.state == orchestrator_pb2.RUN_STATE_FINISHED:
        raise Conflict(f"run {status.id} is finished")
