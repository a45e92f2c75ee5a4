"""The orchestrator's mind: membership, topology, placement and runs joined. Events in, actions out.

Pure in the sense that matters: no I/O, no thread, no clock, no randomness. The caller serialises the calls, brings the
time, and carries the actions out. Refusals are raised as PNodeError and leave everything as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pnode.errors import Busy, Conflict, UnknownRun
from pnode.orchestrator import events
from pnode.orchestrator.actions import Action, Commit, Open, Probe
from pnode.orchestrator.leases import Lease
from pnode.orchestrator.membership import Membership
from pnode.orchestrator.nodes import Nodes
from pnode.orchestrator.patience import Patience
from pnode.orchestrator.phases import Phase
from pnode.orchestrator.placement import Need, Placement, Rules, place
from pnode.orchestrator.recovery import Recovery
from pnode.orchestrator.runs import Run
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.orchestrator.topology import Topology
from pnode.v1 import orchestrator_pb2

log = logging.getLogger(__name__)

FINISHED = orchestrator_pb2.RUN_STATE_FINISHED


class Core:
    """All state of one orchestrator. `first_incarnation` is above every incarnation of an earlier life."""

    def __init__(self, settings: OrchestratorSettings, *, first_incarnation: int = 1) -> None:
        self._settings = settings
        self.runs: dict[str, Run] = {}
        self.topology = Topology()
        self.membership = Membership(
            silence_s=settings.heartbeat_s * settings.missed_heartbeats,
            max_nodes=settings.max_nodes,
            first_incarnation=first_incarnation,
        )
        self.nodes = Nodes(settings, self.topology, self.runs, self.membership)
        self._receivers: dict[type, Callable[[Any, float], list[Action]]] = {
            events.NodeRegistered: self.nodes.registered,
            events.NodeBeat: self.nodes.beat,
            events.NodeLeft: self.nodes.left,
            events.FailureReported: self.nodes.reported,
            events.Probed: self.nodes.probed,
            events.RunSubmitted: self._submitted,
            events.LeaseRenewed: self._renewed,
            events.CheckpointAsked: self._checkpoint_asked,
            events.RunFinished: self._finished,
            events.Ticked: self._ticked,
            events.Failed: self._failed,
            events.Opened: self._result,
            events.Allocated: self._result,
            events.Restored: self._result,
            events.Snapshotted: self._result,
            events.Committed: self._result,
        }

    def handle(self, event: events.Event, now: float) -> list[Action]:
        """Take one event in; returns what is to be done. Raises PNodeError where a request is refused."""
        actions = self._receivers[type(event)](event, now)
        # Whatever happened may have made room, or brought somebody to give work to.
        for run in self.runs.values():
            actions.extend(run.place(now))
        return actions

    # Drivers

    def _submitted(self, event: events.RunSubmitted, now: float) -> list[Action]:
        run = self.runs.get(event.spec.id)
        lease_s = self._settings.lease_s
        if run is None:
            self._make_room()
            lease = Lease(event.holder, event.fresh_lease, now + lease_s, event.nonce, event.owner)
            run = self._new_run(event.spec, lease)
            self.runs[run.id] = run
            return run.begin(now)
        if run.spec != event.spec:
            raise Conflict(f"run {run.id!r} is here with another spec")
        again = bool(event.nonce) and event.nonce == run.lease.nonce
        run.lease.take(event.holder, event.fresh_lease, now, lease_s, event.nonce, owner=event.owner)
        # A Submit that comes twice, the second time after the end, does not begin the run anew.
        return run.begin(now) if run.phase is Phase.ENDED and not again else []

    def _new_run(self, spec: orchestrator_pb2.RunSpec, lease: Lease) -> Run:
        settings = self._settings
        return Run(
            spec,
            lease,
            topology=self.topology,
            membership=self.membership,
            placer=self._place,
            patience=lambda: Patience(
                max_losses=settings.max_losses,
                retry_s=settings.retry_s,
                retry_cap_s=settings.retry_cap_s,
                avoid_s=settings.avoid_s,
            ),
        )

    def _make_room(self) -> None:
        if len(self.runs) < self._settings.max_runs:
            return
        ended = next((run.id for run in self.runs.values() if run.forgettable), None)
        if ended is None:
            raise Busy(f"{len(self.runs)} runs are under way, the most allowed", retry_after_s=self._settings.lease_s)
        del self.runs[ended]
        self.topology.forget_run(ended)

    def _place(self, run: Recovery, needs: list[Need], now: float) -> Placement:
        rules = Rules(
            spread=self._settings.spread,
            pins=self._settings.pins,
            must_pin=not run.ran,
            min_nodes=1 if run.ran else self._settings.min_nodes,
            avoid=run.patience.avoided(now),
        )
        return place(needs, self.nodes.seats(run.id), run.spec.vnodes[0].profile, run.numerics_class, rules)

    def _renewed(self, event: events.LeaseRenewed, now: float) -> list[Action]:
        self.run(event.run).lease.renew(event.lease, now, self._settings.lease_s, owner=event.owner)
        return []

    def _checkpoint_asked(self, event: events.CheckpointAsked, now: float) -> list[Action]:
        run = self.run(event.run)
        run.lease.renew(event.lease, now, self._settings.lease_s, owner=event.owner)
        return run.checkpoint(event)

    def _finished(self, event: events.RunFinished, _now: float) -> list[Action]:
        run = self.run(event.run)
        run.lease.check(event.lease, owner=event.owner)
        if run.phase is Phase.ENDED:
            return []
        return run.end(FINISHED, "")

    # Time and results

    def _ticked(self, _event: events.Ticked, now: float) -> list[Action]:
        actions = self.nodes.ticked(now)
        for run in self.runs.values():
            actions += run.tick(now)
        return actions

    def _result(
        self,
        event: events.Opened | events.Allocated | events.Restored | events.Snapshotted | events.Committed,
        now: float,
    ) -> list[Action]:
        action = event.action
        run = self.runs.get(action.run if isinstance(action, Open | Commit) else action.location.run)
        # A run that ended may have been forgotten while this was under way.
        return [] if run is None else run.succeeded(event, now)

    def _failed(self, event: events.Failed, now: float) -> list[Action]:
        action, error = event.action, event.error
        if isinstance(action, Probe):
            return self.nodes.unanswered(action, error, now)
        log.info("%s failed: %s: %s", type(action).__name__, error.reason, error.message)
        doubt = [] if isinstance(action, Open | Commit) else self.nodes.doubt(action.location, error)
        run = self.runs.get(action.run if isinstance(action, Open | Commit) else action.location.run)
        return doubt if run is None else [*doubt, *run.failed(action, error, now)]

    # Questions

    def run(self, run: str) -> Run:
        """Raises UnknownRun."""
        found = self.runs.get(run)
        if found is None:
            raise UnknownRun(f"no run {run!r} is known here; submit it (again)")
        return found
