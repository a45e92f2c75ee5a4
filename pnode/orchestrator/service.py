"""The orchestrator's two services, for nodes and for drivers: requests become events, replies are read from the core.

A reply is read under the same lock under which its event was taken in, so it never mixes two moments.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol

from pnode.errors import DeadlineExceeded, PermissionDenied
from pnode.orchestrator import checks, events
from pnode.orchestrator.core import Core
from pnode.orchestrator.issuing import IssuedPasses, Issuer
from pnode.orchestrator.journal import RunJournal
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.orchestrator.succession import Succession
from pnode.storage.blob import BlobStore
from pnode.transport.addresses import parse_address
from pnode.transport.callers import caller
from pnode.transport.deadline import Deadline
from pnode.v1 import orchestrator_pb2


class Mind(Protocol):
    """What the services need of their orchestrator."""

    def post(self, event: events.Event) -> None:
        """Take an event in and begin what follows. Raises PNodeError where it is refused."""

    def reading(self) -> AbstractContextManager[Core]:
        """The core, under the lock; `post` may be called inside."""

    def ticket(self) -> tuple[int, Future[orchestrator_pb2.CheckpointReply]]:
        """A ticket for an answer to come, and where it will arrive."""

    def forget(self, ticket: int) -> None:
        """Nobody waits for that answer any more."""


class NodeDesk:
    """Implements OrchestratorApi. The issuer's clock is what nodes go by; `passes` is told where they are."""

    def __init__(self, mind: Mind, settings: OrchestratorSettings, issuer: Issuer, passes: IssuedPasses) -> None:
        self._mind = mind
        self._settings = settings
        self._issuer = issuer
        self._passes = passes
        self._succession = Succession(issuer, tls=settings.tls, patience_s=settings.probe_s)
        self._unix_clock = issuer.authority.now

    def register(self, request: orchestrator_pb2.RegisterRequest, deadline: Deadline) -> orchestrator_pb2.RegisterReply:
        """A node joins, under a new incarnation. Raises Busy, and Conflict where another member has its address."""
        deadline.check()
        protocol = checks.registration(request)
        # One address is written in one way, so that it is known again.
        address = str(parse_address(request.address))
        gone = self._proven_gone(request.node_uuid, address, deadline)
        registered = events.NodeRegistered(request.node_uuid, address, request.capabilities, request.boot, gone)
        with self._mind.reading() as core:
            # Passes are changed for nobody who is refused, and before the calls that the event begins.
            core.membership.check(request.node_uuid, address, successor_of=gone)
            self._passes.expect(address, request.node_uuid)
            self._mind.post(registered)
            member = core.membership.find(request.node_uuid)
            assert member is not None, "it has just registered"
            return orchestrator_pb2.RegisterReply(
                incarnation=member.incarnation,
                heartbeat_s=self._settings.heartbeat_s,
                now_s=self._unix_clock(),
                protocol=protocol,
            )

    def _proven_gone(self, uuid: str, address: str, deadline: Deadline) -> int:
        """The incarnation of another member at this address, where it is proven that this node is there instead."""
        with self._mind.reading() as core:
            before = core.membership.before(uuid, address)
        proven = before is not None and self._succession.proven(address, uuid, deadline)
        return before.incarnation if before is not None and proven else 0

    def heartbeat(
        self, request: orchestrator_pb2.HeartbeatRequest, deadline: Deadline
    ) -> orchestrator_pb2.HeartbeatReply:
        """A node is heard, and told what to do."""
        deadline.check()
        checks.heartbeat(request)
        hosted = tuple(request.vnodes)
        beat = events.NodeBeat(request.node_uuid, request.incarnation, request.load, hosted, request.draining)
        with self._mind.reading() as core:
            self._mind.post(beat)
            directives = core.nodes.directives(request.node_uuid, request.incarnation, hosted)
        return orchestrator_pb2.HeartbeatReply(directives=directives, now_s=self._unix_clock())

    def resolve(self, request: orchestrator_pb2.ResolveRequest, deadline: Deadline) -> orchestrator_pb2.ResolveReply:
        """Where a VNode is, and a token for it. Only who hosts the VNode before it is told: nobody else calls it.

        Raises UnknownRun, UnknownVNode, PermissionDenied, and Unavailable while its run does not serve.
        """
        deadline.check()
        who = caller()
        with self._mind.reading() as core:
            run = core.run(request.run)
            location = run.resolve(request.vnode)
            is_upstream = who is None or any(
                held.run == run.id and run.vnodes[held.vnode].downstream == request.vnode
                for held in core.topology.on_node(who.uuid)
            )
        if not is_upstream:
            raise PermissionDenied(f"{who} hosts no VNode of run {run.id!r} that is upstream of {request.vnode!r}")
        self._issuer.for_peer(who, location)
        return orchestrator_pb2.ResolveReply(location=location)

    def report_failure(
        self, request: orchestrator_pb2.ReportFailureRequest, deadline: Deadline
    ) -> orchestrator_pb2.ReportFailureReply:
        """A VNode could not be used; answered at once, looked into afterwards."""
        deadline.check()
        if request.reporter_uuid:
            checks.node_uuid(request.reporter_uuid)
        reason, message = checks.clipped(request.reason), checks.clipped(request.message)
        self._mind.post(events.FailureReported(request.reporter_uuid, request.fence, reason, message))
        return orchestrator_pb2.ReportFailureReply()

    def unregister(
        self, request: orchestrator_pb2.UnregisterRequest, deadline: Deadline
    ) -> orchestrator_pb2.UnregisterReply:
        """A node leaves. Answered alike when it is gone already, so that it may be asked again."""
        deadline.check()
        records = checks.departure(request)
        reason = checks.clipped(request.reason)
        self._mind.post(events.NodeLeft(request.node_uuid, request.incarnation, reason, records))
        return orchestrator_pb2.UnregisterReply()


class RunDesk:
    """Implements RunsApi."""

    def __init__(
        self,
        mind: Mind,
        settings: OrchestratorSettings,
        store: BlobStore,
        issuer: Issuer,
        token: Callable[[], str] = secrets.token_urlsafe,
    ) -> None:
        self._mind = mind
        self._settings = settings
        self._store = store
        self._issuer = issuer
        self._token = token

    def submit(self, request: orchestrator_pb2.SubmitRequest, deadline: Deadline) -> orchestrator_pb2.SubmitReply:
        """Place a run, or take one over. Raises SpecError, Conflict, LeaseLost, Busy, StoreUnavailable."""
        deadline.check()
        checks.run_spec(request.run, self._settings.max_run_vnodes)
        submitted = events.RunSubmitted(
            request.run,
            checks.holder(request.holder),
            self._token(),
            checks.nonce("nonce", request.nonce),
            self._owner(),
        )
        RunJournal(self._store, request.run.id).claim(request.run)
        with self._mind.reading() as core:
            self._mind.post(submitted)
            run = core.run(request.run.id)
            reply = orchestrator_pb2.SubmitReply(
                status=run.status(), lease=run.lease.id, lease_s=self._settings.lease_s
            )
        self._issuer.for_driver(caller(), reply.status)
        return reply

    def status(self, request: orchestrator_pb2.StatusRequest, deadline: Deadline) -> orchestrator_pb2.StatusReply:
        """How a run stands. With a lease: renews it, and gives tokens for its VNodes. Raises UnknownRun, LeaseLost."""
        deadline.check()
        with self._mind.reading() as core:
            if request.lease:
                self._mind.post(events.LeaseRenewed(request.run, request.lease, self._owner()))
            status = core.run(request.run).status()
        if request.lease:
            self._issuer.for_driver(caller(), status)
        return orchestrator_pb2.StatusReply(status=status)

    def checkpoint(
        self, request: orchestrator_pb2.CheckpointRequest, deadline: Deadline
    ) -> orchestrator_pb2.CheckpointReply:
        """A common checkpoint of all VNodes. Waits for its commit; asked again, it joins or is answered again.

        Raises LeaseLost, StaleFence, StepMismatch, Busy, Unavailable, StoreUnavailable, or what a Snapshot raised.
        """
        deadline.check()
        ticket, reply = self._mind.ticket()
        try:
            self._mind.post(
                events.CheckpointAsked(
                    request.run,
                    request.lease,
                    request.generation,
                    request.version,
                    request.cursor,
                    ticket,
                    self._owner(),
                )
            )
            return reply.result(timeout=deadline.left_s())
        except TimeoutError as error:
            raise DeadlineExceeded(f"the checkpoint of run {request.run!r} was not committed in time") from error
        finally:
            self._mind.forget(ticket)

    def finish(self, request: orchestrator_pb2.FinishRequest, deadline: Deadline) -> orchestrator_pb2.FinishReply:
        """The driver is done: everything is released, the manifests stay."""
        deadline.check()
        self._mind.post(events.RunFinished(request.run, request.lease, self._owner()))
        return orchestrator_pb2.FinishReply()

    def _owner(self) -> str:
        """Who may hold a lease: over TLS the caller's key says who. On plain loopback all are this machine's own."""
        who = caller()
        return who.uuid if self._settings.tls and who is not None else ""
