"""How a run is placed, served and recovered. A pure state machine: events in, actions out, the caller brings the time.

Whatever goes wrong after OPENING leads back to it: a new generation makes everything asked under the old one void, so
no answer that comes late can do harm. A VNode that was asked for and did not confirm is asked for anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from pnode.errors import (
    BlobCorrupt,
    BlobMissing,
    Busy,
    Draining,
    LimitBreach,
    PeerUnavailable,
    PNodeError,
    StaleFence,
    StoreUnavailable,
    Unavailable,
    WallClockBreach,
    WorkerLost,
)
from pnode.orchestrator.actions import Action, Allocate, Asked, Commit, Open, Release, Restore, Snapshot
from pnode.orchestrator.checkpoints import Checkpoints
from pnode.orchestrator.events import Opened
from pnode.orchestrator.history import History
from pnode.orchestrator.leases import Lease
from pnode.orchestrator.membership import Membership
from pnode.orchestrator.patience import Patience
from pnode.orchestrator.phases import Phase
from pnode.orchestrator.placement import Need, Placement
from pnode.orchestrator.topology import Location, Topology
from pnode.v1 import orchestrator_pb2, vnode_pb2

log = logging.getLogger(__name__)

# Not the VNode's fault: waiting or another node helps, however often it happens.
_NO_FAULT = (PeerUnavailable, Unavailable, StoreUnavailable, Draining, Busy)
# The worker died, the node is well: the VNode may come back to it.
_DEATHS = (WorkerLost, LimitBreach, WallClockBreach)


# Asked with (run, VNodes without a place, now).
Placer = Callable[["Recovery", list[Need], float], Placement]


class Recovery:
    """The cycle of one run, from OPENING to SERVING and back."""

    def __init__(
        self,
        spec: orchestrator_pb2.RunSpec,
        lease: Lease,
        *,
        topology: Topology,
        membership: Membership,
        placer: Placer,
        patience: Callable[[], Patience],
    ) -> None:
        self.spec = spec
        self.id = spec.id
        self.lease = lease
        self.vnodes = {vnode.id: vnode for vnode in spec.vnodes}
        self.phase = Phase.ENDED
        self.state: orchestrator_pb2.RunState.ValueType = orchestrator_pb2.RUN_STATE_PLACING
        self.generation = 0
        self.version = 0
        self.message = ""
        self.numerics_class = ""
        self.ran = False
        self.history = History(list(self.vnodes))
        keep = max(1, *(vnode.checkpoint.keep for vnode in spec.vnodes))
        self._checkpoints = Checkpoints(self.id, list(self.vnodes), self.history, keep)
        self._topology = topology
        self._membership = membership
        self._placer = placer
        self._make_patience = patience
        self.patience = patience()
        self._pending: set[str] = set()
        self._attempt = 0
        self._asked_open = False
        self._retry_at_s: float | None = None

    # Beginning and end

    def begin(self, now: float) -> list[Action]:
        """Start, or start again after the end: from the newest manifest, if there is one."""
        self.patience = self._make_patience()
        self.ran = False
        return self._again(now, "waiting for the store")

    def end(self, state: orchestrator_pb2.RunState.ValueType, message: str) -> list[Action]:
        """Finish or fail: everything is released."""
        log.info("run %s ends%s", self.id, f": {message}" if message else "")
        self.phase, self.state, self.message = Phase.ENDED, state, message
        self._pending.clear()
        dropped = [self._topology.drop(self.id, vnode) for vnode in self.vnodes]
        releases = [Release(location, self.generation) for location in dropped if location is not None]
        return [*self._checkpoints.abandon(Unavailable(f"run {self.id!r} has ended: {message}")), *releases]

    def tick(self, now: float) -> list[Action]:
        """Time has passed: go on with what had to wait."""
        return [*self._open_when_ready(now), *self.place(now)]

    # The way to SERVING

    def _again(self, now: float, why: str, pause_s: float = 0.0) -> list[Action]:
        """Recover: everything asked so far is void, and a new generation is taken."""
        if self.phase is Phase.ALLOCATING:
            # Nobody knows whether these reached their node: they get a new epoch.
            for vnode in self._pending:
                self._topology.drop(self.id, vnode)
        self._pending.clear()
        self.phase = Phase.OPENING
        self.state = orchestrator_pb2.RUN_STATE_RECOVERING if self.ran else orchestrator_pb2.RUN_STATE_PLACING
        self.message = why
        self._attempt += 1
        self._asked_open = False
        self._retry_at_s = now + pause_s
        abandoned = self._checkpoints.abandon(StaleFence(f"run {self.id!r} is recovering: {why}"))
        return [*abandoned, *self._open_when_ready(now)]

    def _open_when_ready(self, now: float) -> list[Action]:
        waits = self._asked_open or self._checkpoints.committing
        if self.phase is not Phase.OPENING or waits or (self._retry_at_s is not None and now < self._retry_at_s):
            return []
        self._asked_open = True
        return [Open(self.id, self._attempt, self.generation + 1)]

    def opened(self, event: Opened, now: float) -> list[Action]:
        """The generation is ours: find places."""
        if self.phase is not Phase.OPENING or event.action.attempt != self._attempt:
            return []
        self.generation = event.generation
        self.history.read(event.history)
        self.version = self.history.base_version
        self.patience.progressed(self.version)
        if self.history.base is not None and not self.numerics_class:
            self.numerics_class = self.history.base.manifest.profile
        self.phase = Phase.PLACING
        return self.place(now)

    def place(self, now: float) -> list[Action]:
        """Find a node for every VNode that has none; where that fails, wait."""
        if self.phase is not Phase.PLACING:
            return []
        needs = [
            Need(vnode.id, vnode.limits.memory_bytes)
            for vnode in self.spec.vnodes
            if self._topology.find(self.id, vnode.id) is None
        ]
        if needs:
            placement = self._placer(self, needs, now)
            if placement.why:
                self.state, self.message = orchestrator_pb2.RUN_STATE_PLACING, placement.why
                return []
            self.numerics_class = placement.numerics_class
            for need in needs:
                self._topology.put(self._location(need, placement.nodes[need.vnode]))
        return self._allocate([need.vnode for need in needs])

    def _location(self, need: Need, node_uuid: str) -> Location:
        member = self._membership.find(node_uuid)
        assert member is not None, "placement only offers members"
        return Location(
            run=self.id,
            vnode=need.vnode,
            epoch=self.generation,
            node_uuid=node_uuid,
            incarnation=member.incarnation,
            address=member.address,
            memory_bytes=need.memory_bytes,
        )

    def _allocate(self, vnodes: list[str]) -> list[Action]:
        if self.ran:
            self.state = orchestrator_pb2.RUN_STATE_RECOVERING
        self.phase = Phase.ALLOCATING
        self._pending = set(vnodes)
        if not vnodes:
            return self._restore()
        return [
            Allocate(
                location,
                self.generation,
                self.vnodes[location.vnode],
                self.history.record(location.vnode),
                self._upstream(location.vnode),
            )
            for location in self.locations
            if location.vnode in self._pending
        ]

    def allocated(self, action: Allocate) -> list[Action]:
        """A node took a VNode in."""
        if not self._awaits(Phase.ALLOCATING, action):
            return []
        self._pending.discard(action.location.vnode)
        return [] if self._pending else self._restore()

    def _restore(self) -> list[Action]:
        # New allocations of the initial state need no Restore: each VNode is made on its first request.
        if self.history.base is None and all(location.epoch == self.generation for location in self.locations):
            return self._serve()
        self.phase = Phase.RESTORING
        self._pending = set(self.vnodes)
        return [
            Restore(location, self.generation, self.history.record(location.vnode), self._upstream(location.vnode))
            for location in self.locations
        ]

    def _upstream(self, vnode: str) -> vnode_pb2.Fence:
        """The fence of the VNode before this one; an empty one for the first, which drivers call."""
        before = next(
            (location for location in self.locations if self.vnodes[location.vnode].downstream == vnode), None
        )
        return vnode_pb2.Fence() if before is None else before.fence(self.generation)

    def restored(self, action: Restore) -> list[Action]:
        """A VNode stands at the base."""
        if self._awaits(Phase.RESTORING, action):
            self._pending.discard(action.location.vnode)
            if not self._pending:
                return self._serve()
        return []

    def _serve(self) -> list[Action]:
        self.phase, self.state, self.message = Phase.SERVING, orchestrator_pb2.RUN_STATE_RUNNING, ""
        self.version = self.history.base_version
        self.ran = True
        self.patience.served()
        log.info("run %s serves in generation %d from version %d", self.id, self.generation, self.version)
        return []

    def _awaits(self, phase: Phase, action: Allocate | Restore) -> bool:
        return self.phase is phase and action.generation == self.generation

    # Losses

    def lose(self, losses: Mapping[str, str], now: float, *, blame: bool) -> list[Action]:
        """VNodes are gone, each for its reason. With `blame` they are counted against the run's patience."""
        dropped = {vnode: self._topology.drop(self.id, vnode) for vnode in losses}
        gone = [vnode for vnode, location in dropped.items() if location is not None]
        if not gone or self.phase in (Phase.ENDED, Phase.OPENING, Phase.PLACING):
            return []
        for vnode in gone:
            times = self.patience.lost(vnode) if blame else 0
            if times:
                return self._give_up(vnode, times, losses[vnode])
        return self._again(now, "; ".join(f"VNode {vnode!r}: {losses[vnode]}" for vnode in gone))

    def _give_up(self, vnode: str, times: int, why: str) -> list[Action]:
        message = f"VNode {vnode!r} was lost {times} times without progress past version {self.version}; last: {why}"
        return self.end(orchestrator_pb2.RUN_STATE_FAILED, message)

    def failed(self, action: Asked, error: PNodeError, now: float) -> list[Action]:
        """Something that this run asked for came to nothing."""
        why = f"{error.reason}: {error.message}"
        if isinstance(action, Open):
            return self._unopened(action, error, why, now)
        if isinstance(action, Snapshot | Commit):
            return [*self._checkpoints.failed(action, error), *self._go_on(now)]
        if isinstance(action, Allocate) and self._awaits(Phase.ALLOCATING, action):
            self.patience.avoid(action.location.vnode, action.location.node_uuid, now)
            return self._retry_elsewhere(action, error, f"Allocate: {why}", now)
        if isinstance(action, Restore) and self._awaits(Phase.RESTORING, action):
            return self._unrestored(action, error, f"Restore: {why}", now)
        return []

    def _unopened(self, action: Open, error: PNodeError, why: str, now: float) -> list[Action]:
        if self.phase is not Phase.OPENING or action.attempt != self._attempt:
            return []
        if isinstance(error, BlobCorrupt):
            # The run's own record is damaged: nothing here can mend it, and guessing could fork the run.
            return self.end(orchestrator_pb2.RUN_STATE_FAILED, f"the store's record of this run is damaged: {why}")
        self._asked_open = False
        self._retry_at_s = now + self.patience.pause_s()
        self.message = why
        return []

    def _unrestored(self, action: Restore, error: PNodeError, why: str, now: float) -> list[Action]:
        if isinstance(error, BlobCorrupt | BlobMissing) and action.record.sha256:
            self.history.condemn()
            return self._again(now, why)
        if isinstance(error, StoreUnavailable | Busy):
            return self._again(now, why, self.patience.pause_s())
        if not isinstance(error, _DEATHS):
            self.patience.avoid(action.location.vnode, action.location.node_uuid, now)
        return self._retry_elsewhere(action, error, why, now)

    def _retry_elsewhere(self, action: Allocate | Restore, error: PNodeError, why: str, now: float) -> list[Action]:
        vnode = action.location.vnode
        times = 0 if type(error) in _NO_FAULT else self.patience.lost(vnode)
        if times:
            return self._give_up(vnode, times, why)
        self._topology.drop(self.id, vnode)
        # It may be there all the same: the answer was lost, or came too late.
        release = Release(action.location, action.generation)
        return [release, *self._again(now, f"VNode {vnode!r}: {why}", self.patience.pause_s())]

    def _go_on(self, now: float) -> list[Action]:
        """A checkpoint has ended: whatever waited for that goes on."""
        if self.phase is Phase.LEAVING and self._checkpoints.idle:
            return self._again(now, self.message)
        return self._open_when_ready(now)

    # Questions

    @property
    def locations(self) -> list[Location]:
        """The current allocations, in model order."""
        found = (self._topology.find(self.id, vnode) for vnode in self.vnodes)
        return [location for location in found if location is not None]
