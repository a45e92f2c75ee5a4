"""The nodes' side of the core: who joins, who is heard, who is doubted, and what is lost with them. Pure.

A silent node is lost after some missed heartbeats. A doubt is settled sooner by a probe, one at a time for each node:
the node is lost when it does not answer, and a VNode when its node no longer has it alive.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from pnode.errors import DeadlineExceeded, PeerUnavailable, PNodeError, Unavailable, UnknownRun
from pnode.orchestrator import events
from pnode.orchestrator.actions import Action, Probe, Release
from pnode.orchestrator.membership import Member, Membership
from pnode.orchestrator.phases import Phase
from pnode.orchestrator.placement import Seat
from pnode.orchestrator.reports import Verdict, judge
from pnode.orchestrator.runs import Run
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.orchestrator.topology import Location, Topology
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

log = logging.getLogger(__name__)

# A node that answers so, to whatever was asked of it, may be gone. WorkerLost and its kin are answers, not silence.
_SILENCE = (Unavailable, PeerUnavailable, DeadlineExceeded)


class Nodes:
    """Failure detection over the membership, the topology and the runs that the core shares with it."""

    def __init__(
        self, settings: OrchestratorSettings, topology: Topology, runs: Mapping[str, Run], membership: Membership
    ) -> None:
        self._settings = settings
        self._topology = topology
        self._runs = runs
        self._membership = membership
        # Nodes under a probe, and the allocations that it was raised for, each with its run's generation.
        self._probes: dict[str, set[tuple[Location, int]]] = {}

    # Membership

    def registered(self, event: events.NodeRegistered, now: float) -> list[Action]:
        """A node joins. Whatever it had in an earlier incarnation is lost; the same call again changes nothing."""
        old = self._membership.find(event.uuid)
        if old is not None and event.boot and (old.boot, old.address) == (event.boot, event.address):
            return []
        # Whoever is refused changes nothing.
        self._membership.check(event.uuid, event.address, successor_of=event.successor_of)
        before = self._membership.before(event.uuid, event.address)
        lost: list[Action] = []
        if before is not None:
            log.info("node %s is gone: node %s answers at %s now", before.uuid, event.uuid, event.address)
            lost = self._lose(before, f"node {event.uuid} answers at its address now", now)
        return [*lost, *self._take_in(event, old, now)]

    def _take_in(self, event: events.NodeRegistered, old: Member | None, now: float) -> list[Action]:
        member = self._membership.register(event.uuid, event.address, event.capabilities, now, boot=event.boot)
        log.info("node %s joined from %s", member.uuid, member.address)
        if old is None:
            return []
        return self._lose(old, "its node registered anew", now, release=old.address != member.address)

    def beat(self, event: events.NodeBeat, now: float) -> list[Action]:
        """A node is heard. A VNode that it calls lost is doubted, for the heartbeat may be older than a Restore."""
        member = self._membership.heartbeat(event.uuid, event.incarnation, event.load, now)
        if member is None:
            return []
        if event.draining:
            member.drain(now)
        suspects = set()
        for hosted in event.hosted:
            location = self._current(member, hosted.fence)
            if location is None or hosted.fence.generation != self._runs[location.run].generation:
                continue
            self._runs[location.run].patience.progressed(hosted.version)
            if hosted.state == vnode_pb2.VNODE_STATE_LOST and self._serves(location, hosted.fence.generation):
                suspects.add((location, hosted.fence.generation))
        return self._probe(member, suspects) if suspects else []

    def left(self, event: events.NodeLeft, now: float) -> list[Action]:
        """A node leaves in good order."""
        if not self._membership.remove(event.uuid, event.incarnation):
            return []
        log.info("node %s left: %s", event.uuid, event.reason)
        self._probes.pop(event.uuid, None)
        every = self._topology.on_node(event.uuid)
        ids = [location.vnode for location in every]
        # A record does not name its run: one VNode id in two runs makes it useless.
        records = {record.vnode: record for record in event.records if ids.count(record.vnode) == 1}
        actions: list[Action] = []
        for run, locations in self._by_run(every):
            losses = {location.vnode: f"its node left: {event.reason}" for location in locations}
            actions += run.leave(records, losses, now)
        return actions

    def ticked(self, now: float) -> list[Action]:
        """Time has passed: silent nodes are lost, and what a node did not let go in its drain is taken from it."""
        actions: list[Action] = []
        for member in self._membership.silent(now):
            actions += self._lose(member, "its node missed its heartbeats", now)
        for member in self._membership.overdue(now, self._settings.drain_s):
            for run, locations in self._by_run(self._topology.on_node(member.uuid)):
                losses = {location.vnode: "its node has been draining for too long" for location in locations}
                actions += [Release(location, run.generation) for location in locations]
                actions += run.lose(losses, now, blame=False)
        return actions

    # Failures

    def reported(self, event: events.FailureReported, now: float) -> list[Action]:
        """Somebody could not use a VNode. Raises UnknownRun."""
        run = self._runs.get(event.fence.run)
        if run is None:
            raise UnknownRun(f"no run {event.fence.run!r} is known here")
        location = self._topology.find(run.id, event.fence.vnode)
        verdict = judge(event.reporter, event.fence, event.reason, location, run.generation)
        if location is None or verdict is Verdict.IGNORE:
            return []
        if verdict is Verdict.BELIEVE:
            return self._lose_vnode(location, f"{event.reason}: {event.message}", now)
        member = self._membership.find(location.node_uuid)
        return [] if member is None else self._probe(member, {(location, run.generation)})

    def doubt(self, location: Location, error: PNodeError) -> list[Action]:
        """A node that was silent towards us is probed, whatever else follows from it."""
        member = self._membership.find(location.node_uuid)
        return self._probe(member, set()) if member is not None and type(error) in _SILENCE else []

    def probed(self, event: events.Probed, now: float) -> list[Action]:
        """The node answers: only what it no longer has alive is lost."""
        member = self._under_probe(event.action)
        if member is None:
            return []
        suspects = self._probes.pop(member.uuid, set())
        if event.reply.node_uuid != member.uuid:
            return self._lose(member, f"another node answers at {member.address}", now)
        if event.reply.draining:
            member.drain(now)
        alive = {
            (hosted.fence.run, hosted.fence.vnode, hosted.fence.epoch)
            for hosted in event.reply.vnodes
            if hosted.state != vnode_pb2.VNODE_STATE_LOST
        }
        actions: list[Action] = []
        for location, generation in sorted(suspects, key=lambda suspect: (suspect[0].run, suspect[0].vnode)):
            key = (location.run, location.vnode, location.epoch)
            if key not in alive and self._serves(location, generation):
                actions += self._lose_vnode(location, "its node no longer has it alive", now)
        return actions

    def unanswered(self, action: Probe, error: PNodeError, now: float) -> list[Action]:
        """The probe failed: the node is lost."""
        member = self._under_probe(action)
        return [] if member is None else self._lose(member, f"its node does not answer: {error.message}", now)

    def _serves(self, location: Location, generation: int) -> bool:
        """Whether a doubt is still about the present. While a run recovers, LOST may only mean not restored yet."""
        run = self._runs.get(location.run)
        return (
            run is not None
            and run.phase is Phase.SERVING
            and run.generation == generation
            and self._topology.find(location.run, location.vnode) == location
        )

    def _probe(self, member: Member, suspects: set[tuple[Location, int]]) -> list[Action]:
        under_way = self._probes.get(member.uuid)
        if under_way is not None:
            under_way |= suspects
            return []
        self._probes[member.uuid] = suspects
        return [Probe(member.uuid, member.incarnation, member.address)]

    def _under_probe(self, probe: Probe) -> Member | None:
        member = self._membership.find(probe.node_uuid)
        return member if member is not None and member.incarnation == probe.incarnation else None

    # Losses

    def _lose(self, member: Member, why: str, now: float, *, release: bool = False) -> list[Action]:
        """Everything on a node is lost. It may register again, under a new incarnation."""
        self._membership.remove(member.uuid, member.incarnation)
        self._probes.pop(member.uuid, None)
        actions: list[Action] = []
        for run, locations in self._by_run(self._topology.on_node(member.uuid)):
            log.warning("run %s lost %d VNodes on node %s: %s", run.id, len(locations), member.uuid, why)
            if release:
                actions += [Release(location, run.generation) for location in locations]
            losses = {location.vnode: why for location in locations}
            actions += run.lose(losses, now, blame=run.phase is Phase.SERVING)
        return actions

    def _lose_vnode(self, location: Location, why: str, now: float) -> list[Action]:
        run = self._runs[location.run]
        log.warning("run %s lost VNode %s on node %s: %s", run.id, location.vnode, location.node_uuid, why)
        release = Release(location, run.generation)
        return [release, *run.lose({location.vnode: why}, now, blame=True)]

    def _by_run(self, locations: Sequence[Location]) -> list[tuple[Run, list[Location]]]:
        found: dict[str, list[Location]] = {}
        for location in locations:
            found.setdefault(location.run, []).append(location)
        return [(self._runs[run], its) for run, its in found.items()]

    # Questions

    def _current(self, member: Member, fence: vnode_pb2.Fence) -> Location | None:
        """The allocation that a node speaks of, if it is still the node's."""
        location = self._topology.find(fence.run, fence.vnode)
        mine = location is not None and (location.node_uuid, location.epoch) == (member.uuid, fence.epoch)
        return location if mine else None

    def directives(
        self, uuid: str, incarnation: int, hosted: Sequence[node_pb2.HostedVNode]
    ) -> list[orchestrator_pb2.Directive]:
        """What the reply to a heartbeat tells the node to do."""
        member = self._membership.find(uuid)
        if member is None or member.incarnation != incarnation:
            return [orchestrator_pb2.Directive(reregister=orchestrator_pb2.Reregister())]
        return [
            orchestrator_pb2.Directive(release=node_pb2.ReleaseRequest(fence=vnode.fence))
            for vnode in hosted
            if self._current(member, vnode.fence) is None
        ]

    @property
    def under_probe(self) -> frozenset[str]:
        """The UUIDs of the nodes that are in doubt now."""
        return frozenset(self._probes)

    def seats(self, run: str) -> list[Seat]:
        """The nodes that may be given VNodes of a run, and how much they hold already."""
        return [self._seat(member, run) for member in self._membership.every() if not member.draining]

    def _seat(self, member: Member, run: str) -> Seat:
        held = self._topology.on_node(member.uuid)
        return Seat(
            node_uuid=member.uuid,
            numerics_classes=frozenset(member.capabilities.numerics_classes),
            memory_bytes=member.memory_bytes,
            max_vnodes=member.capabilities.max_vnodes,
            granted_bytes=sum(location.memory_bytes for location in held),
            num_vnodes=len(held),
            num_of_run=sum(location.run == run for location in held),
        )
