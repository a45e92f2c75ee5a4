"""By what right a node calls, and whose calls it takes: its key, its membership of the network, and its tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pnode.errors import PNodeError
from pnode.node.settings import NodeSettings
from pnode.security.identity import Identity as Key
from pnode.transport.addresses import parse_orchestrator
from pnode.transport.api import OrchestratorApi
from pnode.transport.credentials import ServerTls
from pnode.transport.deadline import Deadline
from pnode.transport.guards import Guard, NodeGuard
from pnode.transport.joiner import Joiner
from pnode.v1 import orchestrator_pb2

log = logging.getLogger(__name__)

_RESOLVE_S = 5.0


class Trust:
    """What a node is known by, from its first start on. Raises ConfigError where its key cannot be used."""

    def __init__(self, settings: NodeSettings) -> None:
        key = Key.kept(settings.data_dir, settings.uuid)
        where = parse_orchestrator(settings.orchestrator_address)
        self.uuid = key.uuid
        self.orchestrator = where.address
        self.by_tls = bool(where.fingerprint)
        # What this node's calls carry, and where they may go.
        self.passes = Joiner(key, where, enrolment=settings.enrolment, any_address=settings.any_address)

    @property
    def tls(self) -> ServerTls | None:
        """What this node's server shows; None on plain loopback."""
        return ServerTls(self.passes.tls_identity) if self.by_tls else None

    def guard(self, generation: Callable[[str, str], int | None]) -> Guard:
        """Whose calls are taken. `generation`: where a VNode of a run stands here, or None."""
        reader, now = self.passes.reader, self.passes.clock.now
        return NodeGuard(reader, now, tls=self.by_tls, uuid=self.uuid, generation=generation)

    def renew(self, orchestrator: OrchestratorApi) -> None:
        """Ask again for the tokens whose time is half over, now that the orchestrator answers."""
        for run, vnode in self.passes.due_grants():
            request = orchestrator_pb2.ResolveRequest(run=run, vnode=vnode)
            try:
                orchestrator.resolve(request, Deadline.after(_RESOLVE_S))
            except PNodeError as error:
                # Whoever needs it next resolves it then, and hears why that fails.
                log.debug("the token for VNode %s of run %s was not renewed: %s", vnode, run, error)
                self.passes.grants.forget(run, vnode)
