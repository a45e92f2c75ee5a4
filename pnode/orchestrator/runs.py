"""One run as its driver and its nodes see it. The cycle behind it is in recovery.py. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from pnode.errors import StaleFence, Unavailable, UnknownVNode
from pnode.orchestrator.actions import Action
from pnode.orchestrator.checkpoints import Round
from pnode.orchestrator.events import Allocated, CheckpointAsked, Committed, Opened, Restored, Snapshotted
from pnode.orchestrator.phases import Phase
from pnode.orchestrator.recovery import Recovery
from pnode.v1 import orchestrator_pb2, vnode_pb2

# A recovery takes about this long: who finds one under way comes back after it.
_RETRY_AFTER_S = 0.2


class Run(Recovery):
    """One run and all that is known of it."""

    def succeeded(self, event: Opened | Allocated | Restored | Snapshotted | Committed, now: float) -> list[Action]:
        """Something that this run asked for is done."""
        match event:
            case Opened():
                return self.opened(event, now)
            case Allocated():
                return self.allocated(event.action)
            case Restored():
                return self.restored(event.action)
            case Snapshotted():
                return self._checkpoints.snapshotted(event.action, event.record)
            case Committed():
                return self._committed(event, now)

    # Checkpoints

    def checkpoint(self, asked: CheckpointAsked) -> list[Action]:
        """The driver asks for a common checkpoint.

        Raises StaleFence for another generation, Unavailable while the run does not serve.
        """
        if asked.generation != self.generation:
            raise StaleFence(f"run {self.id!r} is at generation {self.generation}, not {asked.generation}")
        self._must_serve()
        return self._checkpoints.ask(
            asked.ticket, asked.version, asked.cursor, self.generation, self.numerics_class, self.locations
        )

    def _committed(self, event: Committed, now: float) -> list[Action]:
        """The manifest stands; whatever waited for that goes on."""
        self.patience.progressed(event.stored.manifest.version)
        return [*self._checkpoints.committed(event), *self._go_on(now)]

    def leave(
        self, records: Mapping[str, vnode_pb2.StateRecord], losses: Mapping[str, str], now: float
    ) -> list[Action]:
        """VNodes go away in good order, with `records` of theirs. If the others stand where these stood, that is kept.

        The cursor of that checkpoint follows the version, for no driver was asked: one batch each version.
        """
        versions = {records[vnode].version for vnode in losses if vnode in records}
        whole = self.phase is Phase.SERVING and set(losses) <= set(records) and len(versions) == 1
        version = max(versions, default=0)
        if not whole or version <= self.history.base_version or not self._checkpoints.idle:
            return self.lose(losses, now, blame=False)
        for vnode in losses:
            self._topology.drop(self.id, vnode)
        self.phase, self.state = Phase.LEAVING, orchestrator_pb2.RUN_STATE_RECOVERING
        self.message = "; ".join(f"VNode {vnode!r}: {why}" for vnode, why in losses.items())
        base = self.history.base
        cursor = version if base is None else base.manifest.cursor + version - base.manifest.version
        kept = {vnode: records[vnode] for vnode in losses}
        last = Round(version, cursor, self.generation, records=kept)
        return self._checkpoints.begin(last, self.numerics_class, self.locations)

    # Questions

    def _must_serve(self) -> None:
        if self.phase is not Phase.SERVING:
            raise Unavailable(f"run {self.id!r} does not serve now: {self.message}", retry_after_s=_RETRY_AFTER_S)

    @property
    def forgettable(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.phase is Phase.ENDED and not self._checkpoints.committing

    def resolve(self, vnode: str) -> orchestrator_pb2.Location:
        """Where a VNode is, for its peers. Raises UnknownVNode, and Unavailable while the run does not serve."""
        if vnode not in self.vnodes:
            raise UnknownVNode(f"run {self.id!r} has no VNode {vnode!r}")
        self._must_serve()
        location = self._topology.find(self.id, vnode)
        assert location is not None, "a run that serves has a place for every VNode"
        return location.message(self.generation)

    def status(self) -> orchestrator_pb2.RunStatus:
        """For drivers. A VNode without a place has a location without a node."""
        newest = self.history.newest
        return orchestrator_pb2.RunStatus(
            id=self.id,
            state=self.state,
            generation=self.generation,
            version=self.version,
            locations=[self._location_message(vnode) for vnode in self.vnodes],
            message=self.message,
            manifest_sha256=newest.sha256 if newest else "",
            manifest_version=newest.manifest.version if newest else 0,
        )

    def _location_message(self, vnode: str) -> orchestrator_pb2.Location:
        location = self._topology.find(self.id, vnode)
        if location is not None:
            return location.message(self.generation)
        fence = vnode_pb2.Fence(run=self.id, vnode=vnode, generation=self.generation)
        return orchestrator_pb2.Location(fence=fence)
