"""A small world for the core: fake nodes that keep the fences as real ones do, a fake store, time by hand.

Every action waits in `queue` until a test performs it, in whatever order the test likes.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator_fakes import FakeNode, FakeStore, capabilities, run_spec, uuid_of

from pnode.errors import PNodeError
from pnode.orchestrator import events
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
from pnode.orchestrator.core import Core
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.v1 import orchestrator_pb2

RUNNING = orchestrator_pb2.RUN_STATE_RUNNING
PLACING = orchestrator_pb2.RUN_STATE_PLACING
RECOVERING = orchestrator_pb2.RUN_STATE_RECOVERING
FAILED = orchestrator_pb2.RUN_STATE_FAILED
FINISHED = orchestrator_pb2.RUN_STATE_FINISHED


class World:
    """A core, its nodes and its store."""

    def __init__(self, settings: OrchestratorSettings | None = None) -> None:
        self.settings = settings or OrchestratorSettings()
        self.core = Core(self.settings)
        self.now = 1000.0
        self.store = FakeStore()
        self.nodes: dict[str, FakeNode] = {}
        self.queue: list[Action] = []
        self.answers: dict[int, orchestrator_pb2.CheckpointReply | PNodeError] = {}
        # Called with every action that the core asks for.
        self.on_action: Callable[[Action], None] = lambda action: None

    # The core

    def tell(self, event: events.Event) -> None:
        """Give the core an event; its actions wait in the queue."""
        for action in self.core.handle(event, self.now):
            self.on_action(action)
            if isinstance(action, Answer):
                self.answers.update(dict.fromkeys(action.tickets, action.outcome))
            else:
                self.queue.append(action)

    def perform(self, index: int = 0, *, error: PNodeError | None = None, deaf: bool = False) -> Action:
        """Carry one waiting action out, or have it fail with `error`, and tell the core.

        With `deaf` it is carried out and then fails all the same, as when the answer is lost on its way.
        """
        action = self.queue.pop(index)
        if isinstance(action, Release):
            for node in self.nodes.values():
                if node.address == action.location.address:
                    node.release(action)
            return action
        assert not isinstance(action, Answer)
        outcome = self._outcome(action, None if deaf else error)
        self.tell(events.Failed(action, error) if deaf and error is not None else outcome)
        return action

    def _outcome(self, action: Asked, error: PNodeError | None) -> events.Event:
        try:
            if error is not None:
                raise error
            if isinstance(action, Open):
                return self.store.open(action)
            if isinstance(action, Commit):
                return self.store.commit(action)
            if isinstance(action, Restore):
                self.store.check_blob(action.record)
            return self._node_at(action).answer(action)
        except PNodeError as failure:
            return events.Failed(action, failure)

    def _node_at(self, action: Allocate | Restore | Snapshot | Probe) -> FakeNode:
        address = action.address if isinstance(action, Probe) else action.location.address
        return next(
            (node for node in self.nodes.values() if node.address == address), FakeNode("", address, alive=False)
        )

    def settle(self) -> None:
        """Carry everything out, in order."""
        for _ in range(1000):
            if not self.queue:
                return
            self.perform()
        raise AssertionError("the core never comes to rest")

    def pass_time(self, seconds: float, *, heartbeats: bool = True) -> None:
        """Let time pass in ticks; living nodes are heard unless told otherwise."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1.0)
            if heartbeats:
                for node in list(self.nodes.values()):
                    self.beat(node)
            self.tell(events.Ticked())

    # Nodes

    def join(self, index: int, **offer: object) -> FakeNode:
        """A node registers."""
        node = FakeNode(uuid_of(index), f"127.0.0.1:{7000 + index}")
        if offer:
            node.capabilities = capabilities(**offer)  # type: ignore[arg-type]  # keywords of that function
        self.nodes[node.uuid] = node
        self.register(node)
        return node

    def register(self, node: FakeNode) -> None:
        """A node registers, perhaps again."""
        self.tell(events.NodeRegistered(node.uuid, node.address, node.capabilities))
        member = self.core.membership.find(node.uuid)
        assert member is not None
        node.incarnation = member.incarnation

    def restart(self, node: FakeNode) -> None:
        """A node crashes and comes back with nothing."""
        node.alive, node.draining = True, False
        node.vnodes.clear()
        self.register(node)

    def beat(self, node: FakeNode) -> None:
        """A heartbeat, and what its reply asks for."""
        if not node.alive:
            return
        hosted = tuple(node.hosted())
        self.tell(events.NodeBeat(node.uuid, node.incarnation, node.load, hosted, node.draining))
        for directive in self.core.nodes.directives(node.uuid, node.incarnation, hosted):
            if directive.HasField("reregister"):
                self.register(node)
                return
            fence = directive.release.fence
            key = (fence.run, fence.vnode)
            if key in node.vnodes and node.vnodes[key].epoch <= fence.epoch:
                del node.vnodes[key]

    # Drivers

    def submit(self, spec: orchestrator_pb2.RunSpec | None = None, holder: str = "driver", nonce: str = "") -> str:
        """Submit a run; returns the lease."""
        spec = spec or run_spec()
        self.tell(events.RunSubmitted(spec, holder, f"lease-{self.now}-{holder}-{nonce}", nonce))
        return self.core.run(spec.id).lease.id

    def status(self, run: str = "r") -> orchestrator_pb2.RunStatus:
        """How a run stands."""
        return self.core.run(run).status()

    def train_to(self, version: int, run: str = "r") -> None:
        """Every VNode of the run, where it is, stands at a version."""
        for location in self.core.run(run).locations:
            self.nodes[location.node_uuid].vnodes[(run, location.vnode)].version = version

    def checkpoint(self, lease: str, version: int, *, ticket: int = 1, run: str = "r") -> None:
        """Ask for a checkpoint at the present generation."""
        generation = self.core.run(run).generation
        self.tell(events.CheckpointAsked(run, lease, generation, version, version, ticket))

    def where(self, vnode: str, run: str = "r") -> FakeNode:
        """The node that has a VNode."""
        location = self.core.topology.find(run, vnode)
        assert location is not None
        return self.nodes[location.node_uuid]

    def report(self, vnode: str, reason: str, reporter: str = "", run: str = "r") -> None:
        """Somebody reports a VNode under its present fence."""
        location = self.core.topology.find(run, vnode)
        assert location is not None
        fence = location.fence(self.core.run(run).generation)
        self.tell(events.FailureReported(reporter, fence, reason, "said the reporter"))

    def commit(self, version: int, run: str = "r") -> None:
        """Train to a version and have it committed."""
        self.train_to(version, run)
        self.checkpoint(self.core.run(run).lease.id, version, ticket=100 + version, run=run)
        self.settle()
        assert self.status(run).manifest_version == version

    def epochs(self, run: str = "r") -> dict[str, int]:
        """The epoch of every VNode that has a place."""
        return {location.vnode: location.epoch for location in self.core.run(run).locations}
