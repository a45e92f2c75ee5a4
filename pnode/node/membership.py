"""This node's membership: registers, sends heartbeats, follows directives; keeps serving while nobody answers.

One thread. Its waits end at once when the node closes. While the orchestrator is gone the pauses grow by backoff with
full jitter, up to one heartbeat interval, and every change of mind is logged once.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pnode.errors import BadRequest, PermissionDenied, PNodeError, ProtocolMismatch, UnknownNode
from pnode.transport import protocol
from pnode.transport.api import OrchestratorApi
from pnode.transport.deadline import Deadline
from pnode.transport.retry import Backoff
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

log = logging.getLogger(__name__)

# An answer that takes longer than this is as good as none: the next try may find another orchestrator.
_CALL_S = 10.0
# Until the orchestrator names its own interval.
_HEARTBEAT_S = 30.0


@dataclass(frozen=True)
class Identity:
    """How this node is known."""

    uuid: str
    address: str
    capabilities: node_pb2.Capabilities


class Member(Protocol):
    """What the membership asks of, and tells, its node."""

    def load(self) -> node_pb2.Load: ...
    def hosted(self) -> list[node_pb2.HostedVNode]: ...
    def draining(self) -> bool: ...
    def release(self, fence: vnode_pb2.Fence) -> None: ...
    def drain(self, reason: str) -> None: ...
    def reachable(self, answers: bool) -> None: ...


class Membership:
    """Registration and heartbeats of one node."""

    def __init__(
        self,
        identity: Identity,
        member: Member,
        orchestrator: OrchestratorApi,
        *,
        backoff: Callable[[], Backoff],
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._identity = identity
        self._member = member
        self._orchestrator = orchestrator
        self._on_beat = on_beat
        self._make_backoff = backoff
        self._backoff = backoff()
        self._incarnation = 0
        self._boot = secrets.token_hex(16)
        self._heartbeat_s = _HEARTBEAT_S
        self._lost_at: str | None = None
        self._closing = threading.Event()
        self.registered = threading.Event()
        # Set once there is nothing more to wait for: registered, or refused in a way that no waiting mends.
        self.settled = threading.Event()
        self._thread = threading.Thread(target=self._live, name="membership", daemon=True)

    def start(self) -> None:
        """Begin to register, and go on with heartbeats until `close`."""
        self._thread.start()

    @property
    def last_error(self) -> str | None:
        """Why the orchestrator is thought gone; None while it answers."""
        return self._lost_at

    def _live(self) -> None:
        while not self._closing.is_set():
            self._closing.wait(self.beat())

    def beat(self) -> float:
        """Register or send one heartbeat; returns the seconds to wait before the next."""
        try:
            if self._incarnation == 0:
                self._register()
            else:
                self._follow(self._heartbeat())
                self._on_beat()
        except UnknownNode:
            # The orchestrator restarted and knows nobody: join again, at once.
            self._incarnation = 0
            return 0.0
        except PNodeError as error:
            return self._gone(error)
        self._answers()
        return 0.0 if self._incarnation == 0 else self._heartbeat_s

    def _register(self) -> None:
        reply = self._orchestrator.register(
            orchestrator_pb2.RegisterRequest(
                node_uuid=self._identity.uuid,
                address=self._identity.address,
                capabilities=self._identity.capabilities,
                protocol=protocol.NEWEST,
                protocol_min=protocol.OLDEST,
                boot=self._boot,
            ),
            Deadline.after(_CALL_S),
        )
        # One that names no version is older than the word for it: it speaks the first.
        chosen = reply.protocol or 1
        protocol.agreed(chosen, chosen, "the orchestrator")
        self._incarnation = reply.incarnation
        self._heartbeat_s = reply.heartbeat_s or _HEARTBEAT_S
        log.info("registered with the orchestrator; a heartbeat every %g s", self._heartbeat_s)
        self.registered.set()
        self.settled.set()

    def _heartbeat(self) -> orchestrator_pb2.HeartbeatReply:
        return self._orchestrator.heartbeat(
            orchestrator_pb2.HeartbeatRequest(
                node_uuid=self._identity.uuid,
                incarnation=self._incarnation,
                load=self._member.load(),
                vnodes=self._member.hosted(),
                draining=self._member.draining(),
            ),
            Deadline.after(_CALL_S),
        )

    def _follow(self, reply: orchestrator_pb2.HeartbeatReply) -> None:
        for directive in reply.directives:
            kind = directive.WhichOneof("kind")
            if kind == "reregister":
                self._incarnation = 0
            elif kind == "release":
                self._member.release(directive.release.fence)
            elif kind == "drain":
                self._member.drain(directive.drain.reason or "the orchestrator asked for it")
            else:
                log.warning("the orchestrator sent a directive that this version does not know; ignored")

    def _gone(self, error: PNodeError) -> float:
        pause = min(self._backoff.next_s(), self._heartbeat_s)
        refused = isinstance(error, PermissionDenied | ProtocolMismatch | BadRequest)
        how = "refuses this node" if refused else "does not answer"
        if self._lost_at is None:
            log.warning("the orchestrator %s; serving on, trying again in %.1f s: %s", how, pause, error)
        else:
            log.debug("the orchestrator still %s; trying again in %.1f s: %s", how, pause, error)
        self._lost_at = error.message
        if refused:
            self.settled.set()
        self._member.reachable(False)
        return pause

    def _answers(self) -> None:
        if self._lost_at is not None:
            log.info("the orchestrator answers again")
        self._lost_at = None
        self._backoff = self._make_backoff()
        self._member.reachable(True)

    def close(self, reason: str, records: list[vnode_pb2.StateRecord]) -> None:
        """End the heartbeats and unregister, once; a failure is logged, for the node leaves all the same."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_CALL_S + 1.0)
        if self._incarnation == 0:
            return
        request = orchestrator_pb2.UnregisterRequest(
            node_uuid=self._identity.uuid, incarnation=self._incarnation, reason=reason, records=records
        )
        try:
            self._orchestrator.unregister(request, Deadline.after(_CALL_S))
            log.info("unregistered: %s", reason)
        except PNodeError as error:
            log.warning("could not unregister: %s", error)
