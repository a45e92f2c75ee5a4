"""Carries actions out: calls to nodes and to the store, on a bounded number of threads, each under a deadline.

Every action that is asked comes back as one event, whatever happened to it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from pnode.errors import BadRequest, PeerUnavailable, PNodeError, Unavailable
from pnode.orchestrator import checks, events
from pnode.orchestrator.actions import (
    Action,
    Allocate,
    Answer,
    Asked,
    Commit,
    Open,
    Probe,
    Release,
    Restore,
    Snapshot,
)
from pnode.orchestrator.journal import RunJournal
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.storage.blob import BlobStore
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.passes import Passes
from pnode.transport.remote import RemoteNode, RemoteVNode
from pnode.transport.retry import Backoff, retry
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

log = logging.getLogger(__name__)

# Probes and releases are short and must not wait behind a slow Restore.
_PROBE_THREADS = 4
# Between tries of a call whose connection broke. A node that is gone refuses at once, so little time is lost on it.
_RETRY_S = 0.05

T = TypeVar("T")
Reply = Future[orchestrator_pb2.CheckpointReply]


class Executor:
    """Performs actions and posts their events. `close` ends what is under way."""

    def __init__(
        self,
        store: BlobStore,
        settings: OrchestratorSettings,
        post: Callable[[events.Event], None],
        passes: Passes,
    ) -> None:
        self._store = store
        self._settings = settings
        self._post = post
        self._passes = passes
        self._channels = self._new_channels()
        self._pool = ThreadPoolExecutor(settings.num_threads, thread_name_prefix="orchestrate")
        self._probes = ThreadPoolExecutor(_PROBE_THREADS, thread_name_prefix="probe")
        self._lock = threading.Lock()
        self._next_ticket = 1
        self._waiting: dict[int, Reply] = {}
        self._closed = False
        self._closing = threading.Event()

    def _new_channels(self) -> ChannelPool:
        settings = self._settings
        return ChannelPool(max_message_bytes=settings.max_message_bytes, weather=settings.weather, passes=self._passes)

    # Callers that wait

    def ticket(self) -> tuple[int, Reply]:
        """A ticket for an Answer, and where that will arrive."""
        reply: Reply = Future()
        with self._lock:
            ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
            if not self._closed:
                self._waiting[ticket] = reply
                return ticket, reply
        reply.set_exception(Unavailable("the orchestrator is closing"))
        return ticket, reply

    def forget(self, ticket: int) -> None:
        """Nobody waits for this answer any more."""
        with self._lock:
            self._waiting.pop(ticket, None)

    def _answer(self, answer: Answer) -> None:
        for ticket in answer.tickets:
            with self._lock:
                reply = self._waiting.pop(ticket, None)
            if reply is None:
                continue
            if isinstance(answer.outcome, PNodeError):
                reply.set_exception(answer.outcome)
            else:
                reply.set_result(answer.outcome)

    # Actions

    def perform(self, actions: Sequence[Action]) -> None:
        """Begin all of them; returns at once."""
        for action in actions:
            if isinstance(action, Answer):
                self._answer(action)
            elif isinstance(action, Release):
                self._submit(self._probes, partial(self._release, action))
            else:
                self._submit(self._probes if isinstance(action, Probe) else self._pool, partial(self._ask, action))

    def _submit(self, pool: ThreadPoolExecutor, job: Callable[[], None]) -> None:
        with self._lock:
            if not self._closed:
                pool.submit(job)

    def _ask(self, action: Asked) -> None:
        try:
            event = self._outcome(action)
        except PNodeError as error:
            event = events.Failed(action, error)
        except Exception:
            log.exception("%s went wrong", type(action).__name__)
            event = events.Failed(action, PNodeError("an internal error of the orchestrator; its log says more"))
        self._post(event)

    def _outcome(self, action: Asked) -> events.Event:
        match action:
            case Open():
                return self._open(action)
            case Allocate():
                return self._allocate(action)
            case Restore():
                return self._restore(action)
            case Snapshot():
                return self._snapshot(action)
            case Commit():
                stored = RunJournal(self._store, action.run).commit(action.manifest, action.keep)
                return events.Committed(action, stored)
            case Probe():
                return self._probe(action)

    def _open(self, action: Open) -> events.Opened:
        journal = RunJournal(self._store, action.run)
        generation = journal.take_generation(action.at_least)
        return events.Opened(action, generation, journal.history())

    def _allocate(self, action: Allocate) -> events.Allocated:
        location = action.location
        request = node_pb2.AllocateRequest(
            spec=action.spec,
            fence=location.fence(action.generation),
            record=action.record,
            upstream=action.upstream,
        )
        remote = RemoteNode(self._channels, location.address)
        self._call(lambda deadline: remote.allocate(request, deadline), self._settings.allocate_s)
        return events.Allocated(action)

    def _restore(self, action: Restore) -> events.Restored:
        location = action.location
        request = vnode_pb2.RestoreRequest(
            fence=location.fence(action.generation), record=action.record, upstream=action.upstream
        )
        remote = RemoteVNode(self._channels, location.address)
        version = self._call(lambda deadline: remote.restore(request, deadline), self._settings.restore_s).version
        if version != action.record.version:
            raise BadRequest(f"VNode {location.vnode!r} restored version {version}, not {action.record.version}")
        return events.Restored(action)

    def _snapshot(self, action: Snapshot) -> events.Snapshotted:
        location = action.location
        request = vnode_pb2.SnapshotRequest(fence=location.fence(action.generation), version=action.version)
        remote = RemoteVNode(self._channels, location.address)
        record = self._call(lambda deadline: remote.snapshot(request, deadline), self._settings.snapshot_s).record
        return events.Snapshotted(action, checks.state_record(record, location.vnode, action.version))

    def _probe(self, action: Probe) -> events.Probed:
        # By a connection of its own: the shared one may be waiting out its backoff after the node restarted.
        with self._new_channels() as channels:
            remote = RemoteNode(channels, action.address)
            reply = self._call(
                lambda deadline: remote.inspect(node_pb2.InspectRequest(), deadline), self._settings.probe_s
            )
        return events.Probed(action, reply)

    def _release(self, action: Release) -> None:
        location = action.location
        request = node_pb2.ReleaseRequest(fence=location.fence(action.generation))
        try:
            remote = RemoteNode(self._channels, location.address)
            self._call(lambda deadline: remote.release(request, deadline), self._settings.release_s)
        except PNodeError as error:
            # Best effort: most often the node is gone. If it is not, the reply to its heartbeat tells it again.
            log.debug("VNode %s could not be released: %s", location.vnode, error)

    def _call(self, ask: Callable[[Deadline], T], seconds: float) -> T:
        """Ask a node. All that it is asked may be asked again, so a broken connection does not condemn it."""
        deadline = Deadline.after(seconds)
        return retry(
            lambda: ask(deadline), deadline, Backoff(_RETRY_S), self._closing.wait, on=(), few=(PeerUnavailable,)
        )

    def close(self) -> None:
        """End calls in flight, take no more actions, and refuse those who still wait. Safe to call twice."""
        self._closing.set()
        with self._lock:
            self._closed = True
            waiting, self._waiting = list(self._waiting.values()), {}
        self._channels.close()
        for reply in waiting:
            reply.set_exception(Unavailable("the orchestrator is closing"))
        for pool in (self._pool, self._probes):
            pool.shutdown(wait=True, cancel_futures=True)
