"""One PNode, wired: sandbox, store, transport, registry and membership, from start to drained."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from pnode.errors import ConfigError, PNodeError
from pnode.node import capabilities
from pnode.node.allocations import Allocations
from pnode.node.budget import Budget
from pnode.node.chain import TrainChain
from pnode.node.control import Control
from pnode.node.gate import Gate
from pnode.node.hosted import HostedVNode
from pnode.node.membership import Identity, Membership
from pnode.node.pressure import Guard, Reading, Step, read
from pnode.node.quota import Quota
from pnode.node.reports import Reporter
from pnode.node.routes import Route, Routes
from pnode.node.serving import Serving
from pnode.node.settings import NodeSettings
from pnode.node.shelf import StateShelf
from pnode.node.trust import Trust
from pnode.node.workers import Worker
from pnode.observe.counters import Counters
from pnode.sandbox.supervisor import ZygoteProcess
from pnode.storage.blob import BlobStore
from pnode.transport.addresses import Address
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.guards import Guard as CallGuard
from pnode.transport.ports import check_bindable
from pnode.transport.remote import RemoteOrchestrator, RemoteVNode
from pnode.transport.retry import Backoff
from pnode.transport.server import Server, make_server
from pnode.transport.turns import Bounds
from pnode.v1 import node_pb2, spec_pb2, vnode_pb2

log = logging.getLogger(__name__)

# A snapshot at drain may wait for one command and one upload.
_SNAPSHOT_S = 30.0


class Node:
    """One PNode. `start` serves and joins; `drain` leaves in good order; `close` ends everything."""

    def __init__(self, settings: NodeSettings, store: BlobStore, *, guard: CallGuard | None = None) -> None:
        """`guard` instead of its own is for who embeds a node and knows all callers, as benchmarks do."""
        self._settings = settings
        self._given_guard = guard
        self._closing = threading.Event()
        self.drain_asked = threading.Event()
        self._drain_reason = ""
        self._gate = Gate()
        self.counters = Counters()
        self._rng = random.Random()  # noqa: S311 - jitter, nothing secret
        self._trust = Trust(settings)
        self.uuid = self._trust.uuid
        check_bindable(settings.host, settings.port, tls=self._trust.by_tls)
        # Fork first: the zygote is its own process before any gRPC object exists here.
        self._zygote = ZygoteProcess.start(
            num_threads=settings.num_threads,
            device=settings.device,
            require=settings.require_layers,
            deadline_s=settings.start_s,
            on_doubt=self.drain,
        )
        try:
            self._wire(settings, store)
        except BaseException:
            self._zygote.close()
            raise

    def _wire(self, settings: NodeSettings, store: BlobStore) -> None:
        self._budget = Budget(settings.vnode_memory_bytes)
        probed = self._zygote.probe()
        refusals = capabilities.refusals(probed)
        for why in refusals.values():
            log.error("VNodes are refused: %s", why)
        self.capabilities = capabilities.capabilities(
            probed,
            device=self._zygote.device,
            vnode_memory_bytes=self._budget.most_bytes(),
            max_vnodes=settings.max_vnodes,
            layers=self._zygote.layers,
        )
        for name, why in self._zygote.missing_layers.items():
            log.warning("workers have no %s: %s", name, why)
        self._channels = ChannelPool(
            max_message_bytes=settings.max_message_bytes,
            max_whole_bytes=settings.max_whole_bytes,
            compresses=settings.compresses,
            weather=settings.weather,
            passes=self._trust.passes,
        )
        self._orchestrator = RemoteOrchestrator(self._channels, str(self._trust.orchestrator))
        self._reporter = Reporter(self._orchestrator, self.uuid)
        self._quota = Quota(store, settings.data_dir / "uploads.json", settings.disk_bytes)
        self._shelf = StateShelf(store, self._quota)
        self._allocations = Allocations(
            self._host, max_vnodes=settings.max_vnodes, budget=self._budget, in_flight_bytes=settings.in_flight_bytes
        )
        self._allocations.disk_bytes = settings.disk_bytes
        routes = Routes(
            local=self._local,
            orchestrator=self._orchestrator,
            remote=lambda address: RemoteVNode(self._channels, address),
        )
        chain = TrainChain(
            routes=routes,
            max_whole_bytes=settings.max_whole_bytes,
            backoff=lambda: Backoff(settings.peer_backoff_s, cap_s=settings.peer_backoff_cap_s, rng=self._rng),
            wait=self._closing.wait,
            on_peer_lost=self._reporter.report,
        )
        classes = list(self.capabilities.numerics_classes)
        self._serving = Serving(
            gate=self._gate,
            allocations=self._allocations,
            chain=chain,
            numerics_classes=classes,
            max_whole_bytes=settings.max_whole_bytes,
            queue=Bounds(settings.max_queue, settings.max_queue_per_client),
            counters=self.counters,
        )
        control = Control(
            gate=self._gate,
            allocations=self._allocations,
            numerics_classes=classes,
            refusals=refusals,
            inspect=self.inspect,
            drain=self.drain,
        )
        self._server: Server = make_server(
            vnodes=self._serving,
            node=control,
            guard=self._given_guard or self._trust.guard(self._generation),
            tls=self._trust.tls,
            host=settings.host,
            port=settings.port,
            max_threads=settings.max_calls,
            max_message_bytes=settings.max_message_bytes,
            max_whole_bytes=settings.max_whole_bytes,
            default_deadline_s=settings.default_deadline_s,
            max_deadline_s=settings.max_deadline_s,
            in_flight_bytes=settings.in_flight_bytes,
            receive_s=settings.receive_s,
            counters=self.counters,
        )
        self.address = str(Address(settings.advertise or settings.host, self._server.port))
        self._guard = Guard(self._relieve, limits=settings.pressure, look=self._look)
        self._membership = Membership(
            Identity(self.uuid, self.address, self.capabilities),
            self,
            self._orchestrator,
            on_beat=lambda: self._trust.renew(self._orchestrator),
            backoff=lambda: Backoff(settings.reconnect_backoff_s, cap_s=60.0, rng=self._rng),
        )

    # Life

    def start(self) -> None:
        """Serve, then join. Raises ConfigError when the orchestrator stayed silent for `join_s`."""
        self._server.start()
        self._reporter.start()
        self._guard.start()
        self._membership.start()

    def join(self) -> None:
        """Wait for the first registration. Raises ConfigError when it is refused, or `join_s` passed without one."""
        membership, waited = self._membership, self._settings.join_s
        settled = membership.settled.wait(waited)
        if membership.registered.is_set() or self.drain_asked.is_set():
            return
        where, why = self._settings.orchestrator_address, membership.last_error or "no answer"
        how = "does not let this node join" if settled else f"could not be joined in {waited:g} s"
        raise ConfigError(f"orchestrator.address: {where} {how}: {why}")

    def leave(self) -> None:
        """Refuse new work, let what runs end, checkpoint, unregister. Bounded by `drain_s`."""
        log.info("draining: %s", self._drain_reason)
        self._gate.close()
        if not self._gate.wait_empty(self._settings.drain_s):
            log.warning("%d calls were still running after %g s", self._gate.inside, self._settings.drain_s)
        self._membership.close(self._drain_reason, self._checkpoint())

    def _checkpoint(self) -> list[vnode_pb2.StateRecord]:
        records = []
        for vnode in self._allocations.every():
            if vnode.state != vnode_pb2.VNODE_STATE_SERVING:
                continue
            request = vnode_pb2.SnapshotRequest(fence=vnode.fence, version=vnode.ledger.version)
            try:
                records.append(vnode.snapshot(request, Deadline.after(_SNAPSHOT_S)))
            except PNodeError as error:
                log.warning("VNode %s could not be checkpointed: %s", vnode.spec.id, error)
        return records

    def close(self) -> None:
        """End everything that this node started. Safe to call twice."""
        self._closing.set()
        self._guard.close()
        self._server.stop(1.0)
        self._allocations.close()
        self._reporter.close()
        self._channels.close()
        self._zygote.close()

    # What the membership asks

    def load(self) -> node_pb2.Load:
        """How busy this node is."""
        vnodes = self._allocations.every()
        return capabilities.load(
            num_vnodes=len(vnodes),
            vnode_memory_bytes=self._allocations.reserved_bytes,
            granted_memory_bytes=self._allocations.granted_bytes,
            calls_in_flight=self._gate.inside,
        )

    def hosted(self) -> list[node_pb2.HostedVNode]:
        """Every VNode here, and where it stands."""
        return [
            node_pb2.HostedVNode(fence=vnode.fence, state=vnode.state, version=vnode.ledger.version)
            for vnode in self._allocations.every()
        ]

    def draining(self) -> bool:
        """Whether a drain was asked for."""
        return self.drain_asked.is_set()

    def release(self, fence: vnode_pb2.Fence) -> None:
        """The orchestrator gave this VNode to another node."""
        if self._allocations.release(fence):
            log.info("VNode %s of run %s was released", fence.vnode, fence.run)

    def drain(self, reason: str) -> None:
        """Ask this node to leave. Whoever waits on `drain_asked` then does it."""
        self._drain_reason = self._drain_reason or reason
        self.drain_asked.set()

    def reachable(self, answers: bool) -> None:
        """Health names the orchestrator as a service of its own, red while it is gone."""
        self._server.set_health("orchestrator", serving=answers)

    def inspect(self) -> node_pb2.InspectReply:
        """Everything about this node."""
        return node_pb2.InspectReply(
            node_uuid=self.uuid,
            address=self.address,
            capabilities=self.capabilities,
            load=self.load(),
            vnodes=self.hosted(),
            draining=self.draining(),
            orchestrator_reachable=self._membership.registered.is_set() and self._membership.last_error is None,
            counters=self.counters.read(),
        )

    def obey(self, settings: NodeSettings) -> None:
        """Other limits from now on, of those that can change while VNodes are at work."""
        self._budget.configured_bytes = settings.vnode_memory_bytes
        self._allocations.max_vnodes = settings.max_vnodes
        self._allocations.disk_bytes = self._quota.most_bytes = settings.disk_bytes
        self._guard.judge_by(settings.pressure)

    def _look(self) -> Reading:
        return read(over_bytes=self._allocations.over_bytes)

    def _relieve(self, step: Step, why: str) -> None:
        """Memory is short on this machine, or is there again."""
        reason = f"memory is short on this machine: {why}"
        self._gate.hold_back("" if step is Step.NONE else reason)
        if step is Step.DRAIN:
            self.drain(reason)
        elif step is Step.KILL:
            serving = [each for each in self._allocations.every() if each.state == vnode_pb2.VNODE_STATE_SERVING]
            if serving:
                serving[-1].kill(reason)

    # What the parts ask

    def _host(self, request: node_pb2.AllocateRequest) -> HostedVNode:
        return HostedVNode(request, fork=self._fork, shelf=self._shelf, on_lost=self._reporter.report)

    def _fork(self, spec: spec_pb2.VNodeSpec, died: Callable[[str, str], None]) -> Worker:
        return self._zygote.fork(spec, on_exit=lambda _, verdict: died(verdict.reason, verdict.sentence))

    def _generation(self, run: str, vnode: str) -> int | None:
        found = self._allocations.find(run, vnode)
        return None if found is None else found.fence.generation

    def _local(self, run: str, vnode: str) -> Route | None:
        found = self._allocations.find(run, vnode)
        return None if found is None else Route(found.fence, self._serving, self.address)
