"""What must hold in every storm: the state and the invariants of the orchestrator's model.

- never two allocations of one VNode under one epoch, and the epoch rises on every move
- generations only rise
- a generation begins with every VNode at one version
- one commit of a run at a time, of one version, under generations that only rise
- nobody is given more than it grants
"""

from __future__ import annotations

from hypothesis.stateful import RuleBasedStateMachine, invariant
from orchestrator_fakes import FakeNode, FakeVNode
from orchestrator_world import World

from pnode.orchestrator.actions import Action, Allocate, Commit, Restore
from pnode.orchestrator.phases import Phase
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.v1 import vnode_pb2


class Weather(RuleBasedStateMachine):
    """The world, what was seen of it so far, and what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(OrchestratorSettings(max_losses=10**6, spread=True))
        self.world.on_action = self.asked
        self.epochs: dict[tuple[str, str], int] = {}
        self.generations: dict[str, int] = {}
        self.committing: set[str] = set()
        self.served: dict[str, int] = {}
        self.tickets = 0

    def asked(self, action: Action) -> None:
        """Every action, as the core asks for it."""
        if isinstance(action, Allocate):
            location = action.location
            key = (location.run, location.vnode)
            assert location.epoch > self.epochs.get(key, 0), "the epoch rises on every move"
            self.epochs[key] = location.epoch
        if isinstance(action, Allocate | Restore):
            assert action.generation >= action.location.epoch
        if isinstance(action, Commit):
            assert action.run not in self.committing, "one commit at a time"
            self.committing.add(action.run)

    def node(self, index: int) -> FakeNode:
        return list(self.world.nodes.values())[index % len(self.world.nodes)]

    def fakes(self, run: str) -> list[FakeVNode]:
        """The VNodes of a run as their nodes have them, where the core believes them to be."""
        every: list[FakeVNode] = []
        for location in self.world.core.run(run).locations:
            fake = self.world.nodes[location.node_uuid].vnodes.get((run, location.vnode))
            if fake is not None:
                every.append(fake)
        return every

    def whole(self, run: str) -> bool:
        """Whether training is possible at all: everyone there, in one generation, at one version."""
        locations = self.world.core.run(run).locations
        nodes = [self.world.nodes[location.node_uuid] for location in locations]
        fakes = self.fakes(run)
        generation = self.world.core.run(run).generation
        return (
            len(fakes) == 3
            and all(node.alive for node in nodes)
            and all(
                (fake.generation, fake.epoch, fake.state) == (generation, location.epoch, vnode_pb2.VNODE_STATE_SERVING)
                for fake, location in zip(fakes, locations, strict=True)
            )
            and len({fake.version for fake in fakes}) == 1
        )

    @invariant()
    def one_allocation_for_one_epoch(self) -> None:
        seen = [
            (run, vnode, fake.epoch) for node in self.world.nodes.values() for (run, vnode), fake in node.vnodes.items()
        ]
        assert len(seen) == len(set(seen))

    @invariant()
    def generations_only_rise(self) -> None:
        for run, found in self.world.core.runs.items():
            assert found.generation >= self.generations.get(run, 0)
            self.generations[run] = found.generation

    @invariant()
    def manifests_hold_one_version_and_generations_rise(self) -> None:
        for stored in self.world.store.stored.values():
            newest_first = [(each.manifest.generation, each.manifest.version) for each in stored]
            assert newest_first == sorted(newest_first, reverse=True)
            for each in stored:
                assert [record.vnode for record in each.manifest.vnodes] == ["v0", "v1", "v2"]

    @invariant()
    def nobody_is_given_more_than_it_grants(self) -> None:
        for member in self.world.core.membership.every():
            held = self.world.core.topology.on_node(member.uuid)
            assert sum(location.memory_bytes for location in held) <= member.capabilities.vnode_memory_bytes

    @invariant()
    def running_means_placed(self) -> None:
        for run in self.world.core.runs.values():
            if run.phase is Phase.SERVING:
                assert len(run.locations) == 3
                assert all(self.world.core.membership.find(location.node_uuid) for location in run.locations)

    @invariant()
    def a_generation_begins_at_one_version(self) -> None:
        for run, found in self.world.core.runs.items():
            if found.phase is not Phase.SERVING or self.served.get(run) == found.generation:
                continue
            self.served[run] = found.generation
            for location in found.locations:
                fake = self.world.nodes[location.node_uuid].vnodes.get((run, location.vnode))
                # A node may have crashed since it confirmed; the others stand where the run says.
                if fake is not None and fake.state == vnode_pb2.VNODE_STATE_SERVING:
                    assert (fake.generation, fake.epoch, fake.version) == (
                        found.generation,
                        location.epoch,
                        found.version,
                    )
