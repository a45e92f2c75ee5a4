"""Where every VNode is: run and VNode -> location, under the epoch of its allocation.

An epoch is the generation in which the allocation was made, so it rises strictly on every move, and no two
allocations of one VNode ever share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pnode.v1 import orchestrator_pb2, vnode_pb2


@dataclass(frozen=True)
class Location:
    """One allocation. `incarnation` is of the node's membership; `memory_bytes` is what the VNode was granted there."""

    run: str
    vnode: str
    epoch: int
    node_uuid: str
    incarnation: int
    address: str
    memory_bytes: int

    def fence(self, generation: int) -> vnode_pb2.Fence:
        """The tokens under which this allocation may be called in a generation of its run."""
        return vnode_pb2.Fence(run=self.run, vnode=self.vnode, generation=generation, epoch=self.epoch)

    def message(self, generation: int) -> orchestrator_pb2.Location:
        """As the wire carries it."""
        return orchestrator_pb2.Location(fence=self.fence(generation), node_uuid=self.node_uuid, address=self.address)


class Topology:
    """All current allocations of all runs."""

    def __init__(self) -> None:
        self._locations: dict[tuple[str, str], Location] = {}
        self._epochs: dict[tuple[str, str], int] = {}

    def put(self, location: Location) -> None:
        """Record an allocation. Its epoch must be above every earlier one of this VNode."""
        key = (location.run, location.vnode)
        if location.epoch <= self._epochs.get(key, 0):
            raise AssertionError(f"epoch {location.epoch} of {key} does not rise above {self._epochs[key]}")
        self._epochs[key] = location.epoch
        self._locations[key] = location

    def drop(self, run: str, vnode: str) -> Location | None:
        """Forget an allocation; the epoch stays burnt."""
        return self._locations.pop((run, vnode), None)

    def find(self, run: str, vnode: str) -> Location | None:
        """Where a VNode is, or None while it has no place."""
        return self._locations.get((run, vnode))

    def on_node(self, node_uuid: str) -> list[Location]:
        """Everything allocated to a node, in the order of allocation."""
        return [location for location in self._locations.values() if location.node_uuid == node_uuid]

    def __iter__(self) -> Iterator[Location]:
        return iter(self._locations.values())

    def forget_run(self, run: str) -> None:
        """Drop what is known of a run that will not be asked for again."""
        for key in [key for key in self._epochs if key[0] == run]:
            del self._epochs[key]
            self._locations.pop(key, None)
