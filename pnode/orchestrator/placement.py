"""Which node takes which VNode: a pure function of what is needed and of the seats that there are.

The largest VNode is placed first, each on the capable node with the least granted memory in proportion to what it
offers, then with the fewest VNodes, then by UUID: the same question always has the same answer. Where that leaves a
VNode without room, all are packed as tightly as they go instead; that is good, not perfect, as bin packing goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Need:
    """One VNode that has no place."""

    vnode: str
    memory_bytes: int


@dataclass(frozen=True)
class Seat:
    """One node as placement sees it. `num_of_run` counts the VNodes that it holds of the run being placed."""

    node_uuid: str
    numerics_classes: frozenset[str]
    memory_bytes: int
    max_vnodes: int
    granted_bytes: int = 0
    num_vnodes: int = 0
    num_of_run: int = 0

    def takes(self, need: Need) -> bool:
        """Whether there is room."""
        return self.num_vnodes < self.max_vnodes and need.memory_bytes <= self.memory_bytes - self.granted_bytes

    def with_one_more(self, need: Need) -> Seat:
        """This seat after it took a VNode of the run in."""
        return replace(
            self,
            granted_bytes=self.granted_bytes + need.memory_bytes,
            num_vnodes=self.num_vnodes + 1,
            num_of_run=self.num_of_run + 1,
        )


@dataclass(frozen=True)
class Rules:
    """How to choose. `pins` maps a VNode to the UUID of its node; `must_pin` waits for that node rather than choose.

    `avoid` holds (VNode, node) pairs that were refused a moment ago.
    """

    spread: bool = False
    pins: Mapping[str, str] = field(default_factory=dict)
    must_pin: bool = False
    min_nodes: int = 1
    avoid: AbstractSet[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class Placement:
    """VNode -> node UUID for every need, all in one numerics class; or nothing, and `why` not."""

    nodes: Mapping[str, str] = field(default_factory=dict)
    numerics_class: str = ""
    why: str = ""


# What makes one node better than another: the smallest wins, then the smallest UUID.
Order = Callable[[Seat, Rules], tuple[float, ...]]


def place(needs: Sequence[Need], seats: Sequence[Seat], profile: str, bound_class: str, rules: Rules) -> Placement:
    """Place all needs or none of them.

    `profile` is the specs' numerics profile. `bound_class` is the numerics class that the run has already used, to
    which it is bound: bits are only equal within one class. Empty: any class of the profile, the most common first.
    """
    why = f"no node offers numerics {bound_class or profile!r}" if seats else "no node has joined"
    for numerics_class in _classes(seats, profile, bound_class):
        capable = [seat for seat in seats if numerics_class in seat.numerics_classes]
        if len(capable) < rules.min_nodes:
            why = f"waiting for nodes: {len(capable)} of {rules.min_nodes} have joined"
            continue
        for order in (_least_loaded, _tightest):
            nodes, why = _assign(needs, capable, rules, order)
            if not why:
                return Placement(nodes, numerics_class)
    return Placement(why=why)


def _classes(seats: Sequence[Seat], profile: str, bound_class: str) -> list[str]:
    if bound_class:
        return [bound_class] if any(bound_class in seat.numerics_classes for seat in seats) else []
    counts: dict[str, int] = {}
    for seat in seats:
        for name in seat.numerics_classes:
            if name == profile or name.startswith(profile + "/"):
                counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))


def _assign(needs: Sequence[Need], capable: Sequence[Seat], rules: Rules, order: Order) -> tuple[dict[str, str], str]:
    seats = {seat.node_uuid: seat for seat in capable}
    nodes: dict[str, str] = {}
    # A stable sort: VNodes of one size keep their model order. Pinned ones first, or others could take their room.
    for need in sorted(needs, key=lambda need: (need.vnode not in rules.pins, -need.memory_bytes)):
        chosen = _choose(need, seats, rules, order)
        if chosen is None:
            return {}, _why(need, seats, rules)
        seats[chosen.node_uuid] = chosen.with_one_more(need)
        nodes[need.vnode] = chosen.node_uuid
    return nodes, ""


def _choose(need: Need, seats: Mapping[str, Seat], rules: Rules, order: Order) -> Seat | None:
    able = [seat for seat in seats.values() if seat.takes(need) and (need.vnode, seat.node_uuid) not in rules.avoid]
    pin = rules.pins.get(need.vnode)
    pinned = [seat for seat in able if seat.node_uuid == pin]
    if pinned or (pin is not None and rules.must_pin):
        return pinned[0] if pinned else None
    return min(able, key=lambda seat: (*order(seat, rules), seat.node_uuid), default=None)


def _least_loaded(seat: Seat, rules: Rules) -> tuple[float, ...]:
    share = seat.granted_bytes / seat.memory_bytes if seat.memory_bytes else 1.0
    return (seat.num_of_run if rules.spread else 0, share, seat.num_vnodes)


def _tightest(seat: Seat, rules: Rules) -> tuple[float, ...]:
    del rules  # a place at all comes before a place apart
    return (seat.memory_bytes - seat.granted_bytes,)


def _why(need: Need, seats: Mapping[str, Seat], rules: Rules) -> str:
    pin = rules.pins.get(need.vnode)
    if pin is not None and rules.must_pin and pin not in seats:
        return f"VNode {need.vnode!r} is pinned to node {pin}, which has not joined"
    return (
        f"no room for VNode {need.vnode!r}: it needs {need.memory_bytes} bytes of memory on one of {len(seats)} nodes"
    )
