"""Fakes for the core: nodes that keep the fences as real ones do, and a store. They pass what the real ones promise."""

from __future__ import annotations

import hashlib
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
from pnode.orchestrator.actions import Allocate, Commit, Open, Probe, Release, Restore, Snapshot
from pnode.orchestrator.events import Stored
from pnode.v1 import node_pb2, orchestrator_pb2, spec_pb2, vnode_pb2


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
    load: node_pb2.Load = field(default_factory=node_pb2.Load)
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
