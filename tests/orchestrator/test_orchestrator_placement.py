"""Placement: who takes what, always the same way, all or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnode.orchestrator.placement import Need, Rules, Seat, place

CLASS = frozenset({"samebits-1"})


def seat(name: str, **changes: object) -> Seat:
    fields: dict[str, object] = {"memory_bytes": 100, "max_vnodes": 4, "numerics_classes": CLASS, **changes}
    return Seat(node_uuid=name, **fields)  # type: ignore[arg-type]  # a table's row


def needs(*sizes: int) -> list[Need]:
    return [Need(f"v{index}", size) for index, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "seats", "rules", "nodes"),
    [
        ((10,), [seat("b"), seat("a")], Rules(), {"v0": "a"}),
        ((10, 10, 10), [seat("a"), seat("b"), seat("c")], Rules(), {"v0": "a", "v1": "b", "v2": "c"}),
        ((10,), [seat("a", granted_bytes=50), seat("b")], Rules(), {"v0": "b"}),
        # A share of what is offered, not bytes: 50 of 1000 is less loaded than 10 of 100.
        ((10,), [seat("a", granted_bytes=10), seat("b", memory_bytes=1000, granted_bytes=50)], Rules(), {"v0": "b"}),
        ((10,), [seat("a", num_vnodes=2), seat("b", num_vnodes=1)], Rules(), {"v0": "b"}),
        ((10,), [seat("a", num_vnodes=4), seat("b", granted_bytes=80, num_vnodes=1)], Rules(), {"v0": "b"}),
        # The largest first, or it would find no room.
        ((40, 100), [seat("a"), seat("b")], Rules(), {"v0": "b", "v1": "a"}),
        # Balanced, the last one would find no room: then tightly.
        (
            (6, 6, 4, 4, 4),
            [seat("a", memory_bytes=12), seat("b", memory_bytes=12)],
            Rules(),
            {"v0": "a", "v1": "a", "v2": "b", "v3": "b", "v4": "b"},
        ),
        ((10, 10), [seat("a", memory_bytes=1000), seat("b")], Rules(spread=True), {"v0": "a", "v1": "b"}),
        ((10,), [seat("a", num_of_run=1), seat("b", granted_bytes=80)], Rules(spread=True), {"v0": "b"}),
        ((10,), [seat("a"), seat("b")], Rules(pins={"v0": "b"}), {"v0": "b"}),
        ((10,), [seat("a")], Rules(pins={"v0": "b"}), {"v0": "a"}),
        ((10, 10), [seat("a"), seat("b")], Rules(pins={"v0": "a", "v1": "a"}, must_pin=True), {"v0": "a", "v1": "a"}),
        # What is pinned takes its place before a larger one can.
        ((60, 50), [seat("a"), seat("b")], Rules(pins={"v1": "a"}, must_pin=True), {"v0": "b", "v1": "a"}),
        ((10,), [seat("a"), seat("b")], Rules(avoid=frozenset({("v0", "a")})), {"v0": "b"}),
    ],
)
def test_placed(sizes: tuple[int, ...], seats: list[Seat], rules: Rules, nodes: dict[str, str]) -> None:
    placement = place(needs(*sizes), seats, "samebits-1", "", rules)
    assert (placement.nodes, placement.numerics_class, placement.why) == (nodes, "samebits-1", "")


@pytest.mark.parametrize(
    ("sizes", "seats", "rules", "why"),
    [
        ((10,), [], Rules(), "no node has joined"),
        ((10,), [seat("a", numerics_classes=frozenset({"torch/2.13.0"}))], Rules(), "no node offers numerics"),
        ((101,), [seat("a")], Rules(), "no room for VNode 'v0'"),
        ((10, 10), [seat("a", max_vnodes=1)], Rules(), "no room for VNode 'v1'"),
        ((10,), [seat("a", granted_bytes=95)], Rules(), "no room"),
        ((10,), [seat("a")], Rules(min_nodes=3), "1 of 3 have joined"),
        ((10,), [seat("a")], Rules(pins={"v0": "b"}, must_pin=True), "pinned to node b, which has not joined"),
        ((10,), [seat("a")], Rules(avoid=frozenset({("v0", "a")})), "no room"),
    ],
)
def test_refused(sizes: tuple[int, ...], seats: list[Seat], rules: Rules, why: str) -> None:
    placement = place(needs(*sizes), seats, "samebits-1", "", rules)
    assert not placement.nodes
    assert why in placement.why


def test_a_profile_takes_its_most_common_class_and_stays_in_it() -> None:
    old, new = frozenset({"torch/2.12/cpu"}), frozenset({"torch/2.13/cpu"})
    seats = [seat("a", numerics_classes=old), seat("b", numerics_classes=new), seat("c", numerics_classes=new)]
    first = place(needs(10, 10, 10), seats, "torch", "", Rules())
    assert first.numerics_class == "torch/2.13/cpu"
    assert set(first.nodes.values()) == {"b", "c"}
    bound = place(needs(10), seats, "torch", "torch/2.12/cpu", Rules())
    assert bound.nodes == {"v0": "a"}
    assert "torch/2.11" in place(needs(10), seats, "torch", "torch/2.11/cpu", Rules()).why


def test_a_class_without_room_gives_way_to_the_next() -> None:
    seats = [
        seat("a", numerics_classes=frozenset({"torch/x"}), memory_bytes=5),
        seat("b", numerics_classes=frozenset({"torch/x"}), memory_bytes=5),
        seat("c", numerics_classes=frozenset({"torch/y"})),
    ]
    assert place(needs(10), seats, "torch", "", Rules()).numerics_class == "torch/y"


SEATS = st.lists(
    st.builds(
        Seat,
        node_uuid=st.sampled_from("abcdef"),
        numerics_classes=st.sampled_from([CLASS, frozenset({"torch/x"})]),
        memory_bytes=st.integers(0, 100),
        max_vnodes=st.integers(0, 4),
        granted_bytes=st.integers(0, 50),
        num_vnodes=st.integers(0, 3),
    ),
    unique_by=lambda seat: seat.node_uuid,
    max_size=6,
)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), SEATS, st.booleans())
def test_never_over_a_grant_and_independent_of_the_order_of_seats(
    sizes: list[int], seats: list[Seat], spread: bool
) -> None:
    wanted = needs(*sizes)
    placement = place(wanted, seats, "samebits-1", "", Rules(spread=spread))
    assert placement == place(wanted, seats[::-1], "samebits-1", "", Rules(spread=spread))
    assert bool(placement.why) == (not placement.nodes)
    for chosen in seats:
        mine = [need for need in wanted if placement.nodes.get(need.vnode) == chosen.node_uuid]
        if mine:
            assert sum(need.memory_bytes for need in mine) + chosen.granted_bytes <= chosen.memory_bytes
            assert len(mine) + chosen.num_vnodes <= chosen.max_vnodes
            assert chosen.numerics_classes == CLASS
    if placement.nodes:
        assert set(placement.nodes) == {need.vnode for need in wanted}
