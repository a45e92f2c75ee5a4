"""Everything at once, at random: joins, crashes, partitions, reports, lost answers, in any order.

What must hold meanwhile is in orchestrator_weather.py. When the storm is over, every run must be RUNNING again.
"""

from __future__ import annotations

from typing import Any

from hypothesis import Phase as Phases
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from orchestrator_fakes import run_spec
from orchestrator_weather import Weather
from orchestrator_world import RUNNING

from pnode.errors import (
    BlobCorrupt,
    Busy,
    DeadlineExceeded,
    Draining,
    LimitBreach,
    PeerUnavailable,
    PNodeError,
    StaleFence,
    StoreUnavailable,
    UnknownVNode,
    WorkerLost,
)
from pnode.orchestrator import events
from pnode.orchestrator.actions import Action, Commit, Open, Release
from pnode.v1 import vnode_pb2

RUNS = ("a", "b")
INDEX = st.integers(0, 1000)
ERRORS: list[PNodeError] = [
    PeerUnavailable("refused"),
    DeadlineExceeded("silent"),
    Busy("full"),
    Draining("leaving"),
    StaleFence("newer here"),
    WorkerLost("died"),
    LimitBreach("over its memory"),
    StoreUnavailable("no answer"),
    UnknownVNode("never heard"),
    BlobCorrupt("not what it says"),
    PNodeError("internal"),
]


class Storm(Weather):
    """Two runs on up to five nodes."""

    @initialize()
    def begin(self) -> None:
        for index in (1, 2, 3):
            self.world.join(index)
        for run in RUNS:
            self.world.submit(run_spec(run, memory=(30, 20, 10)))

    # What happens to actions

    def done(self, action: Action) -> None:
        if isinstance(action, Commit):
            self.committing.discard(action.run)

    def perform(self, index: int, **how: Any) -> None:
        position = index % len(self.world.queue)
        self.done(self.world.queue[position])
        self.world.perform(position, **how)

    @precondition(lambda self: self.world.queue)
    @rule(index=INDEX)
    def action_succeeds(self, index: int) -> None:
        self.perform(index)

    @precondition(lambda self: self.world.queue)
    @rule()
    def oldest_action_succeeds(self) -> None:
        self.perform(0)

    @precondition(lambda self: self.world.queue)
    @rule(index=INDEX, error=st.sampled_from(ERRORS), deaf=st.booleans())
    def action_fails(self, index: int, error: PNodeError, deaf: bool) -> None:
        action = self.world.queue[index % len(self.world.queue)]
        if isinstance(action, Open) and isinstance(error, BlobCorrupt):
            # The one fault that ends a run at once: the store's own record of it is damaged.
            return
        self.perform(index, error=error, deaf=deaf)

    # What happens to nodes

    @precondition(lambda self: len(self.world.nodes) < 5)
    @rule()
    def node_joins(self) -> None:
        self.world.join(len(self.world.nodes) + 1)

    @rule(index=INDEX)
    def node_vanishes(self, index: int) -> None:
        self.node(index).alive = False

    @rule(index=INDEX)
    def node_reappears_as_it_was(self, index: int) -> None:
        self.node(index).alive = True

    @rule(index=INDEX)
    def node_restarts(self, index: int) -> None:
        self.world.restart(self.node(index))

    @rule(index=INDEX, state=st.sampled_from([vnode_pb2.VNODE_STATE_LOST, None]), told=st.booleans())
    def worker_dies(self, index: int, state: vnode_pb2.VNodeState.ValueType | None, told: bool) -> None:
        node = self.node(index)
        if not node.vnodes or not node.alive:
            return
        run, vnode = sorted(node.vnodes)[index % len(node.vnodes)]
        found = node.vnodes[run, vnode]
        if state is None:
            del node.vnodes[run, vnode]
        else:
            found.state = state
        if told:
            fence = vnode_pb2.Fence(run=run, vnode=vnode, generation=found.generation, epoch=found.epoch)
            self.world.tell(events.FailureReported(node.uuid, fence, "WORKER_LOST", ""))

    @rule(index=INDEX)
    def node_drains(self, index: int) -> None:
        self.node(index).draining = True

    @rule(index=INDEX, with_records=st.booleans())
    def node_leaves(self, index: int, with_records: bool) -> None:
        node = self.node(index)
        every = tuple(node.record(vnode, found.version) for (_run, vnode), found in node.vnodes.items())
        self.world.tell(events.NodeLeft(node.uuid, node.incarnation, "SIGTERM", every if with_records else ()))
        node.alive = False

    @rule(index=INDEX)
    def heartbeat(self, index: int) -> None:
        self.world.beat(self.node(index))

    @rule(seconds=st.sampled_from([1, 5, 31, 91]), heartbeats=st.booleans())
    def time_passes(self, seconds: int, heartbeats: bool) -> None:
        self.world.pass_time(seconds, heartbeats=heartbeats)

    @rule(run=st.sampled_from(RUNS), index=INDEX, reason=st.sampled_from(["PEER_UNAVAILABLE", "WORKER_LOST", "BUSY"]))
    def somebody_reports(self, run: str, index: int, reason: str) -> None:
        locations = self.world.core.run(run).locations
        if locations:
            self.world.report(locations[index % len(locations)].vnode, reason, run=run)

    # What drivers do

    @rule(run=st.sampled_from(RUNS), steps=st.integers(1, 3))
    def driver_trains(self, run: str, steps: int) -> None:
        if self.world.status(run).state == RUNNING and self.whole(run):
            version = self.fakes(run)[0].version
            self.world.train_to(version + steps, run)

    @rule(run=st.sampled_from(RUNS))
    def driver_checkpoints(self, run: str) -> None:
        found = self.world.core.run(run)
        version = max((fake.version for fake in self.fakes(run)), default=0)
        self.tickets += 1
        try:
            self.world.checkpoint(found.lease.id, version, ticket=self.tickets, run=run)
        except PNodeError:
            # Refused while it recovers, or one is under way: drivers come back.
            return

    @rule(run=st.sampled_from(RUNS))
    def driver_finishes_and_comes_back(self, run: str) -> None:
        self.world.tell(events.RunFinished(run, self.world.core.run(run).lease.id))
        self.world.submit(self.world.core.run(run).spec)

    @rule(up=st.booleans())
    def store_comes_and_goes(self, up: bool) -> None:
        self.world.store.up = up

    @rule(run=st.sampled_from(RUNS), index=INDEX)
    def a_blob_is_spoilt(self, run: str, index: int) -> None:
        stored = self.world.store.stored.get(run, [])
        if stored:
            records = stored[0].manifest.vnodes
            self.world.store.bad.add(records[index % len(records)].sha256)

    # The end

    def drivers_call(self) -> None:
        """Nothing but a call finds out that a node has silently forgotten a VNode."""
        for run, found in self.world.core.runs.items():
            for location in found.locations:
                self.world.report(location.vnode, "UNKNOWN_VNODE", run=run)

    def teardown(self) -> None:
        """The storm is over: everything works from now on."""
        world = self.world
        world.store.up = True
        while len(world.nodes) < 3:
            world.join(len(world.nodes) + 1)
        for node in list(world.nodes.values()):
            if node.draining:
                world.restart(node)
            node.alive = True
        for _ in range(40):
            while world.queue:
                self.perform(0)
            world.pass_time(5)
            self.drivers_call()
        for run in world.core.runs:
            status = world.status(run)
            assert status.state == RUNNING, f"{status.message}"
            assert self.whole(run)
            assert self.fakes(run)[0].version >= status.version
        assert not any(isinstance(action, Release) for action in world.queue)


TestStorm = Storm.TestCase
# Without the phase that explains a failure: it traces every line, and the failing steps say enough.
TestStorm.settings = settings(
    max_examples=50,
    stateful_step_count=60,
    deadline=None,
    phases=[Phases.explicit, Phases.reuse, Phases.generate, Phases.shrink],
)
