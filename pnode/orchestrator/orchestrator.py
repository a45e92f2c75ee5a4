"""One orchestrator, wired: core, executor, services, server and ticker. Embeddable, or alone as role=orchestrator.

Its state is in memory, and what must outlive it is in the store: specs, generations, run manifests. After a restart
nodes join again and drivers submit again; runs go on from their newest manifest. SQLite and PostgreSQL come with an
issue of their own.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial

from pnode.errors import ConfigError
from pnode.orchestrator import events
from pnode.orchestrator.core import Core
from pnode.orchestrator.door import Door
from pnode.orchestrator.executor import Executor
from pnode.orchestrator.issuing import IssuedPasses, Issuer
from pnode.orchestrator.service import NodeDesk, RunDesk
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.security.authority import Authority
from pnode.security.known_keys import KnownKeys
from pnode.storage.blob import BlobStore
from pnode.transport.addresses import Address
from pnode.transport.credentials import ServerTls
from pnode.transport.guards import OrchestratorGuard
from pnode.transport.server import Server, make_server
from pnode.v1 import orchestrator_pb2

log = logging.getLogger(__name__)

_GRACE_S = 1.0
# The largest message is a run's spec: of as many VNodes as a run may have, 16 KiB each.
_MESSAGE_BYTES = 4 << 20
# A join brings a key, a signature and a certificate's request.
_DOOR_MESSAGE_BYTES = 64 << 10
# A tick calls nobody.
_END_S = 30.0


class Orchestrator:
    """Serves nodes and drivers. The store is the caller's, who closes it after this.

    Without TLS all of it is on one port. With TLS that port is the door, where anybody may prove who it is, and another
    one takes only those whom the door gave a certificate.

    `clock` is monotonic and `unix_clock` is the wall clock, both in seconds; `token` makes the ids of leases.
    Raises ConfigError where the host is not loopback or the port cannot be bound.
    """

    def __init__(
        self,
        store: BlobStore,
        settings: OrchestratorSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
        token: Callable[[], str] = secrets.token_urlsafe,
    ) -> None:
        self._settings = settings
        self._clock = clock
        # Milliseconds of the wall clock: above every incarnation that an earlier life gave away.
        self._core = Core(settings, first_incarnation=max(1, int(unix_clock() * 1000)))
        # Reentrant, so that a service may post an event and read its effect in one moment.
        self._changed = threading.Condition(threading.RLock())
        self._closing = threading.Event()
        keys = settings.keys
        self.authority = Authority.fresh(unix_clock) if keys is None else Authority.kept(keys, unix_clock)
        self._issuer = Issuer(self.authority, token_s=settings.token_s, certificate_s=settings.certificate_s)
        passes = IssuedPasses(self._issuer, tls=settings.tls)
        self.nodes = NodeDesk(self, settings, self._issuer, passes)
        self.runs = RunDesk(self, settings, store, self._issuer, token)
        self._servers = self._bound(
            Door(
                self._issuer,
                KnownKeys(None if keys is None else keys / "known_keys"),
                tls=settings.tls,
                enrolment=settings.enrolment,
                member_port=lambda: self._servers[-1].port,
            )
        )
        self._executor = Executor(store, settings, self._took, passes)
        self._ticker = threading.Thread(target=self._tick_until_closing, name="ticker", daemon=True)

    def _bound(self, door: Door) -> list[Server]:
        """The server with the door first, the members' last."""
        settings, issuer = self._settings, self._issuer
        guard = OrchestratorGuard(
            lambda: issuer.reader, issuer.authority.now, tls=settings.tls, any_address=settings.any_address
        )
        bind = partial(
            make_server,
            guard=guard,
            host=settings.host,
            max_message_bytes=min(settings.max_message_bytes, _MESSAGE_BYTES),
            in_flight_bytes=settings.in_flight_bytes,
            receive_s=settings.receive_s,
            default_deadline_s=settings.default_deadline_s,
            max_deadline_s=settings.max_deadline_s,
        )
        if not settings.tls:
            return [bind(door=door, orchestrator=self.nodes, runs=self.runs, port=settings.port)]
        shown = issuer.authority.door
        outside = bind(
            door=door,
            port=settings.port,
            tls=ServerTls(lambda: shown, of_members=False),
            max_message_bytes=min(settings.max_message_bytes, _DOOR_MESSAGE_BYTES),
        )
        try:
            inside = bind(
                orchestrator=self.nodes,
                runs=self.runs,
                port=settings.member_port,
                tls=ServerTls(issuer.tls_identity),
            )
        except ConfigError:
            outside.stop(0.0)
            raise
        return [outside, inside]

    @property
    def port(self) -> int:
        """The port where it is joined."""
        return self._servers[0].port

    @property
    def address(self) -> str:
        """Where nodes and drivers join it, as host:port; with TLS the fingerprint of its authority follows."""
        where = str(Address(self._settings.host, self.port))
        return f"{where}#{self.authority.fingerprint}" if self._settings.tls else where

    def start(self) -> None:
        """Serve, and let time pass."""
        for server in self._servers:
            server.start()
        self._ticker.start()
        how = "by TLS" if self._settings.tls else "without TLS, which goes no further than this machine"
        log.info("the orchestrator serves on %s, %s", self.address, how)

    def close(self) -> None:
        """Stop serving and end everything under way. Safe to call twice, and before `start`."""
        self._closing.set()
        if self._ticker.is_alive():
            self._ticker.join(_END_S)
        self._executor.close()
        for server in self._servers:
            server.stop(_GRACE_S)

    def _tick_until_closing(self) -> None:
        while not self._closing.wait(self._settings.tick_s):
            self.tick()

    def tick(self) -> None:
        """Let the core see the time once. The ticker does; so may whoever brings a clock of its own."""
        self._took(events.Ticked())

    # What the services need

    def post(self, event: events.Event) -> None:
        """Take an event in and begin what follows. Raises PNodeError where it is refused."""
        with self._changed:
            self._executor.perform(self._core.handle(event, self._clock()))
            self._changed.notify_all()

    def _took(self, event: events.Event) -> None:
        try:
            self.post(event)
        except Exception:
            log.exception("the core failed at %s", type(event).__name__)

    @contextmanager
    def reading(self) -> Iterator[Core]:
        """The core, under the lock; `post` may be called inside."""
        with self._changed:
            yield self._core

    def wait_for(self, predicate: Callable[[Core], bool], timeout_s: float) -> bool:
        """Wait until something is true of the core; False when `timeout_s` passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: predicate(self._core), timeout=timeout_s)

    def ticket(self) -> tuple[int, Future[orchestrator_pb2.CheckpointReply]]:
        """A ticket for an answer to come, and where it will arrive."""
        return self._executor.ticket()

    def forget(self, ticket: int) -> None:
        """Nobody waits for that answer any more."""
        self._executor.forget(ticket)
