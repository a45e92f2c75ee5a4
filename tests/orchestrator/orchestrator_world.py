"""A small world for the core: fake nodes that keep the fences as real ones do, a fake store, time by hand.

Every action waits in `queue` until a test performs it, in whatever order the test likes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pnode.errors import (
    BlobCorrupt,
    PeerUnavailable,
    PNodeError,
    StaleFence,
    StepMismatch,
    StoreUnavailable,
    UnknownVNode,
)
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
from pnode.orchestrator.events import Stored
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.v1 import node_pb2, orchestrator_pb2, spec_pb2, vnode_pb2

RUNNING = orchestrator_pb2.RUN_STATE_RUNNING
PLACING = orchestrator_pb2.RUN_STATE_PLACING
RECOVERING = orchestrator_pb2.RUN_STATE_RECOVERING
FAILED = orchestrator_pb2.RUN_STATE_FAILED
FINISHED = orchestrator_pb2.RUN_STATE_FINISHED


def uuid_of(index: int) -> str:
    """A readable UUID."""
    return f"00000000-0000-4000-8000-{index:012d}"


def capabilities(
    *, memory: int = 100, max_vnodes: int = 8, classes: tuple[str, ...] = ("samebits-1",)
) -> node_pb2.Capabilities:
    """What a node offers."""
    return node_pb2.Capabilities(vnode_memory_bytes=memory, max_vnodes=max_vnodes, numerics_classes=classes)


def run_spec(
    run: str = "r", *, memory: tuple[int, ...] = (10, 10, 10), keep: int = 2, profile: str = "samebits-1"
) -> orchestrator_pb2.RunSpec:
    """A run of VNodes v0, v1, ..; only what the core reads is filled in."""
    vnodes = [
        spec_pb2.VNodeSpec(
            id=f"v{index}",
            run=run,
            profile=profile,
            limits=spec_pb2.Limits(memory_bytes=size),
            checkpoint=spec_pb2.CheckpointPolicy(keep=keep),
        )
        for index, size in enumerate(memory)
    ]
    return orchestrator_pb2.RunSpec(id=run, vnodes=vnodes)


def digest(text: str) -> str:
    """A SHA-256 of words."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class FakeVNode:
    """A VNode as a node hosts it."""

    generation: int
    epoch: int
    version: int
    state: vnode_pb2.VNodeState.ValueType = vnode_pb2.VNODE_STATE_SERVING


@dataclass
class FakeNode:
    """A node that obeys the fences. `refusals` maps an action's type to the error that it answers with."""

    uuid: str
    address: str
    alive: bool = True
    draining: bool = False
    incarnation: int = 0
    capabilities: node_pb2.Capabilities = field(default_factory=capabilities)
    vnodes: dict[tuple[str, str], FakeVNode] = field(default_factory=dict)
    refusals: dict[type, PNodeError] = field(default_factory=dict)

    def answer(self, action: Allocate | Restore | Snapshot | Probe) -> events.Event:
        """What comes back. Raises what a stub would raise."""
        if not self.alive:
            raise PeerUnavailable(f"{self.address}: connection refused")
        if type(action) in self.refusals:
            raise self.refusals[type(action)]
        match action:
            case Allocate():
                return self._allocate(action)
            case Restore():
                return self._restore(action)
            case Snapshot():
                return self._snapshot(action)
            case Probe():
                reply = node_pb2.InspectReply(node_uuid=self.uuid, vnodes=self.hosted(), draining=self.draining)
                return events.Probed(action, reply)

    def _allocate(self, action: Allocate) -> events.Event:
        key, epoch = (action.location.run, action.location.vnode), action.location.epoch
        old = self.vnodes.get(key)
        if old is not None and (epoch < old.epoch or action.generation < old.generation):
            raise StaleFence("an older allocation")
        if old is None or epoch > old.epoch:
            self.vnodes[key] = FakeVNode(action.generation, epoch, action.record.version)
        return events.Allocated(action)

    def _restore(self, action: Restore) -> events.Event:
        vnode = self._vnode(action)
        if action.location.epoch != vnode.epoch or action.generation < vnode.generation:
            raise StaleFence("another allocation, or an older generation")
        vnode.generation = action.generation
        vnode.version = action.record.version
        vnode.state = vnode_pb2.VNODE_STATE_SERVING
        return events.Restored(action)

    def _snapshot(self, action: Snapshot) -> events.Event:
        vnode = self._vnode(action)
        if (action.location.epoch, action.generation) != (vnode.epoch, vnode.generation):
            raise StaleFence("another fence")
        if vnode.version != action.version:
            raise StepMismatch(f"stands at {vnode.version}")
        return events.Snapshotted(action, self.record(action.location.vnode, action.version))

    def _vnode(self, action: Restore | Snapshot) -> FakeVNode:
        found = self.vnodes.get((action.location.run, action.location.vnode))
        if found is None:
            raise UnknownVNode("never allocated here")
        return found

    def record(self, vnode: str, version: int) -> vnode_pb2.StateRecord:
        """The same state has the same digest, wherever it was made."""
        return vnode_pb2.StateRecord(vnode=vnode, version=version, sha256=digest(f"{vnode}@{version}"), size_bytes=9)

    def release(self, action: Release) -> None:
        """As heartbeats and Release do it: nothing newer is let go."""
        key = (action.location.run, action.location.vnode)
        if self.alive and key in self.vnodes and self.vnodes[key].epoch <= action.location.epoch:
            del self.vnodes[key]

    def hosted(self) -> list[node_pb2.HostedVNode]:
        """What its heartbeats list."""
        return [
            node_pb2.HostedVNode(
                fence=vnode_pb2.Fence(run=run, vnode=name, generation=vnode.generation, epoch=vnode.epoch),
                state=vnode.state,
                version=vnode.version,
            )
            for (run, name), vnode in self.vnodes.items()
        ]


class FakeStore:
    """Generations and manifests of runs; `bad` holds digests of corrupt manifests' states."""

    def __init__(self) -> None:
        self.up = True
        self.generations: dict[str, int] = {}
        self.stored: dict[str, list[Stored]] = {}
        self.bad: set[str] = set()

    def open(self, action: Open) -> events.Event:
        """Take a generation."""
        self._check()
        self.generations[action.run] = max(self.generations.get(action.run, 0) + 1, action.at_least)
        return events.Opened(action, self.generations[action.run], tuple(self.stored.get(action.run, ())))

    def commit(self, action: Commit) -> events.Event:
        """As RunJournal.commit."""
        self._check()
        history = self.stored.setdefault(action.run, [])
        parent = history[0].sha256 if history else None
        if history and history[0].manifest.generation > action.manifest.generation:
            raise StaleFence("a later generation has committed")
        manifest = replace(action.manifest, parent=parent)
        stored = Stored(digest(repr(manifest)), manifest)
        self.stored[action.run] = [stored, *history][: action.keep]
        return events.Committed(action, stored)

    def check_blob(self, record: vnode_pb2.StateRecord) -> None:
        """Raises BlobCorrupt for a state that was spoilt."""
        if record.sha256 in self.bad:
            raise BlobCorrupt(f"{record.sha256} is not what it says")

    def _check(self) -> None:
        if not self.up:
            raise StoreUnavailable("the store does not answer")


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
        self.tell(events.NodeBeat(node.uuid, node.incarnation, node_pb2.Load(), hosted, node.draining))
        for directive in self.core.nodes.directives(node.uuid, node.incarnation, hosted):
            if directive.HasField("reregister"):
                self.register(node)
                return
            fence = directive.release.fence
            key = (fence.run, fence.vnode)
            if key in node.vnodes and node.vnodes[key].epoch <= fence.epoch:
                del node.vnodes[key]

    # Drivers

    def submit(self, spec: orchestrator_pb2.RunSpec | None = None, holder: str = "driver") -> str:
        """Submit a run; returns the lease."""
        spec = spec or run_spec()
        self.tell(events.RunSubmitted(spec, holder, f"lease-{self.now}-{holder}"))
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
