"""One VNode in the front: its fence, its ledger and its worker. Every command to the worker goes through here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pnode.errors import Busy, Conflict, StaleFence, StepMismatch, WorkerLost
from pnode.node import fences
from pnode.node.shelf import StateShelf, check_record
from pnode.node.workers import Fork, OnLost, Reply, Worker
from pnode.transport.deadline import Deadline
from pnode.transport.turns import FairTurns
from pnode.v1 import node_pb2, vnode_pb2
from pnode.vnode import sizes
from pnode.vnode.ledger import RETRY_AFTER_S, Ledger
from pnode.vnode.requests import Requests
from pnode.vnode.tensors import TensorBytes

log = logging.getLogger(__name__)

T = TypeVar("T")

# Retries that may wait for the calls they join, each with a thread: no flood of them takes a node's threads.
_MAX_JOINED = 64


class HostedVNode:
    """A VNode allocated to this node. Its worker is forked on the first request that needs it.

    A turn is held over every command that depends on the step: what the ledger says and what the worker did change
    together under it, and a Restore between them is impossible. Clients get their turns one after the other.
    """

    def __init__(self, request: node_pb2.AllocateRequest, *, fork: Fork, shelf: StateShelf, on_lost: OnLost) -> None:
        check_record(request.spec.id, request.record)
        self.spec = request.spec
        self.requests = Requests(request.spec)
        self._record = request.record
        self._fork = fork
        self._shelf = shelf
        self._on_lost = on_lost
        self.turns = FairTurns(f"VNode {request.spec.id!r}")
        self.changed = threading.Condition()
        self._num_trains = 0
        self._fence = fences.copied(request.fence)
        self._upstream = fences.copied(request.upstream)
        self._restored: vnode_pb2.RestoreRequest | None = None
        self.ledger = Ledger(window=request.spec.window)
        self.ledger.reset(request.fence.generation, request.record.version)
        self._worker: Worker | None = None
        self._lost: str | None = None
        self._closed = False
        self._uploaded: dict[int, vnode_pb2.StateRecord] = {}

    # What it is

    @property
    def fence(self) -> vnode_pb2.Fence:
        """The fence under which it may be called now."""
        return self._fence

    @property
    def state(self) -> vnode_pb2.VNodeState.ValueType:
        """ALLOCATED until the first request made a worker, LOST after that worker died, else SERVING."""
        if self._lost is not None:
            return vnode_pb2.VNODE_STATE_LOST
        return vnode_pb2.VNODE_STATE_ALLOCATED if self._worker is None else vnode_pb2.VNODE_STATE_SERVING

    @property
    def used_bytes(self) -> int:
        """Memory that its worker has taken by now."""
        worker = self._worker
        return 0 if worker is None else worker.used_bytes

    def describe(self, numerics_class: str) -> vnode_pb2.DescribeReply:
        """For drivers and operators: answered by the front alone, so it never waits for the worker."""
        return vnode_pb2.DescribeReply(
            spec=self.spec,
            fence=self._fence,
            state=self.state,
            version=self.ledger.version,
            accumulated=self.ledger.next,
            numerics_class=numerics_class,
        )

    # Commands

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold one of the places for Trains: a window, and some retries that join the calls under way. Raises Busy."""
        with self.changed:
            most = self.spec.window + min(3 * self.spec.window, _MAX_JOINED)
            if self._num_trains >= most:
                why = f"{self._num_trains} microbatches and retries of them are at VNode {self.spec.id!r} already"
                raise Busy(why, retry_after_s=RETRY_AFTER_S)
            self._num_trains += 1
        try:
            yield
        finally:
            with self.changed:
                self._num_trains -= 1

    @contextmanager
    def commanding(self, fence: vnode_pb2.Fence, deadline: Deadline) -> Iterator[None]:
        """Hold the worker's turn under this fence.

        Raises StaleFence, or DeadlineExceeded where the turn came too late, or to a caller that has gone: what has not
        begun by then is not begun.
        """
        with self.turns.taken(deadline):
            self.check(fence)
            deadline.check()
            yield

    def check(self, fence: vnode_pb2.Fence) -> None:
        """Raises StaleFence unless `fence` is exactly ours and we are still allocated."""
        if self._closed:
            raise StaleFence(f"VNode {self.spec.id!r} was released from this node")
        fences.check(self._fence, fence)

    def check_caller(self, caller: vnode_pb2.Fence) -> None:
        """Raises StaleFence where another VNode, or an earlier one of that name, may not call this one any more."""
        fences.check_caller(self._fence, self._upstream, caller)

    def command(self, name: str, fields: dict[str, Any], tensors: Sequence[TensorBytes], deadline: Deadline) -> Reply:
        """Run one command in the worker, which is made where there is none yet. `commanding` must be held."""
        return self._ready_worker(deadline).call(name, fields, tensors, deadline_s=deadline.left_s())

    def forward(self, inputs: Sequence[TensorBytes], read: Callable[[Reply], T], deadline: Deadline) -> T:
        """What `read` makes of the outputs while they lie in shared memory. The turn must be held."""
        return self._ready_worker(deadline).exchange("forward", {}, inputs, read, deadline_s=deadline.left_s())

    def _ready_worker(self, deadline: Deadline) -> Worker:
        if self._lost is not None:
            raise WorkerLost(f"VNode {self.spec.id!r} has no worker until it is restored: {self._lost}")
        if self._worker is None:
            return self._own(self._instantiate(self._record, deadline))
        return self._worker

    def _own(self, worker: Worker) -> Worker:
        """Have this worker from now on. Raises StaleFence, and ends it, where the VNode was released meanwhile."""
        with self.changed:
            released = self._closed
            if not released:
                self._worker = worker
        if released:
            worker.close()
            raise StaleFence(f"VNode {self.spec.id!r} was released from this node")
        return worker

    def _instantiate(self, record: vnode_pb2.StateRecord, deadline: Deadline) -> Worker:
        # The state is fetched first: a worker that waits for the store would only hold memory.
        tensors = self._shelf.fetch(record, sizes.state_bytes(self.spec), deadline)
        worker = self._fork(self.spec, self._worker_died)
        try:
            if tensors:
                worker.call("restore", {"version": record.version}, tensors, deadline_s=deadline.left_s())
        except BaseException:
            worker.close()
            raise
        log.info("VNode %s of run %s: worker up at version %d", self.spec.id, self.spec.run, record.version)
        return worker

    def _worker_died(self, reason: str, message: str) -> None:
        """The supervisor's word, from its own thread: no lock of a command may be waited for here."""
        if self._closed:
            return
        with self.changed:
            self._lost = message
            self.changed.notify_all()
        log.warning("VNode %s of run %s lost its worker: %s: %s", self.spec.id, self.spec.run, reason, message)
        self._on_lost(self._fence, reason, message)

    # State

    def snapshot(self, request: vnode_pb2.SnapshotRequest, deadline: Deadline) -> vnode_pb2.StateRecord:
        """Upload the state at `request.version`. Raises StepMismatch where the VNode stands elsewhere."""
        known = self._uploaded.get(request.version)
        if known is not None:
            self.check(request.fence)
            return known
        with self.commanding(request.fence, deadline):
            if request.version != self.ledger.version or self.ledger.next != 0:
                raise StepMismatch(
                    f"VNode {self.spec.id!r} stands at version {self.ledger.version} with {self.ledger.next} "
                    f"microbatches in; a snapshot was asked of version {request.version}"
                )
            (state,) = self.command("state", {}, (), deadline).tensors
        # Uploaded outside the turn: training goes on while the store is slow.
        record = self._shelf.upload(self.spec.id, request.version, state.payload, deadline)
        self.check(request.fence)
        self._uploaded = {request.version: record}
        return record

    def restore(self, request: vnode_pb2.RestoreRequest, deadline: Deadline) -> int:
        """Adopt a generation and the state of its record; whatever was under way is dropped.

        A retry is answered, however late it comes: were it done again, it would undo the steps trained since.
        Raises StaleFence for an older generation or another epoch, Conflict for another record in one generation,
        BadRequest for a record that is not of this VNode, BlobMissing or BlobCorrupt for a bad one: then everything is
        as it was. Only a newer generation is adopted even where its record is bad, so that zombies stay out.
        """
        with self.turns.taken(deadline):
            if not self._is_done(request):
                check_record(self.spec.id, request.record)
                is_newer = self._check_newer(request.fence)
                if is_newer:
                    self._adopt(request)
                self._renew(request.record, deadline)
                if not is_newer:
                    self._adopt(request)
                self._restored = request
            return int(request.record.version)

    def _is_done(self, request: vnode_pb2.RestoreRequest) -> bool:
        done = self._restored
        if done is None or self._closed or request.fence != self._fence:
            return False
        if request.record != done.record:
            raise Conflict(f"VNode {self.spec.id!r} was restored with another record in this generation")
        if self._lost is not None:
            raise WorkerLost(f"VNode {self.spec.id!r} was restored, and has lost its worker since: {self._lost}")
        return True

    def _check_newer(self, theirs: vnode_pb2.Fence) -> bool:
        """Whether a Restore brings another generation. Raises StaleFence where it may not come at all."""
        ours = self._fence
        if self._closed or theirs.epoch != ours.epoch or theirs.generation < ours.generation:
            fences.check(ours, theirs)
            raise StaleFence(f"VNode {self.spec.id!r} was released from this node")
        return theirs.generation > ours.generation

    def _adopt(self, request: vnode_pb2.RestoreRequest) -> None:
        """Be what the request says; what the front knew of the time before is dropped."""
        with self.changed:
            self._fence = fences.copied(request.fence)
            self._upstream = fences.copied(request.upstream)
            self._restored = None
            self._record = request.record
            self._uploaded = {}
            self.ledger.reset(request.fence.generation, request.record.version)
            self.changed.notify_all()

    def _renew(self, record: vnode_pb2.StateRecord, deadline: Deadline) -> None:
        """Have the worker adopt the state, which it judges before it changes anything; or have a new one."""
        if self._worker is None or self._lost is not None:
            self._replace_worker(record, deadline)
            return
        tensors = self._shelf.fetch(record, sizes.state_bytes(self.spec), deadline)
        self._worker.call("restore", {"version": record.version}, tensors, deadline_s=deadline.left_s())

    def _replace_worker(self, record: vnode_pb2.StateRecord, deadline: Deadline) -> None:
        old, lost = self._worker, self._lost
        # From here on a word of a death is of the new one.
        self._lost = None
        try:
            self._own(self._instantiate(record, deadline))
        except BaseException:
            with self.changed:
                self._lost = self._lost or lost
                self.changed.notify_all()
            raise
        if old is not None:
            old.close()

    def kill(self, reason: str) -> None:
        """End its worker for the good of the machine; the VNode is lost until it is restored."""
        worker = self._worker
        if worker is not None:
            worker.kill(reason)

    def _drop_worker(self) -> None:
        with self.changed:
            worker, self._worker, self._lost = self._worker, None, None
        if worker is not None:
            worker.close()

    def close(self) -> None:
        """Release the VNode: its worker ends, calls that wait are refused."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        self._drop_worker()
