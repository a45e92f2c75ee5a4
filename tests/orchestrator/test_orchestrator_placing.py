"""Runs that wait for nodes: placed when they join, tried elsewhere when refused. The core alone, time by hand."""

from __future__ import annotations

from orchestrator_fakes import run_spec, uuid_of
from orchestrator_world import FAILED, PLACING, RUNNING, World

from pnode.errors import (
    Busy,
    SpecError,
)
from pnode.orchestrator.actions import Allocate
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.v1 import node_pb2, vnode_pb2

LOST = vnode_pb2.VNODE_STATE_LOST


def test_a_fresh_run_is_only_allocated(world: World) -> None:
    status = world.status()
    assert (status.generation, status.version, status.message) == (1, 0, "")
    assert len({location.node_uuid for location in status.locations}) == 3
    assert all(location.fence.epoch == 1 for location in status.locations)


def test_it_waits_for_nodes_and_says_so() -> None:
    world = World()
    world.submit(run_spec(memory=(60, 60)))
    world.settle()
    assert world.status().state == PLACING
    assert "no node has joined" in world.status().message
    world.join(1)
    assert "no room for VNode 'v1'" in world.status().message
    world.join(2)
    world.settle()
    assert world.status().state == RUNNING


def test_pins_and_min_nodes_hold_the_first_placement_back() -> None:
    pins = {"v0": uuid_of(2), "v2": uuid_of(2)}
    world = World(OrchestratorSettings(pins=pins, min_nodes=3))
    world.submit()
    for index in (1, 3):
        world.join(index)
        world.settle()
        assert world.status().state == PLACING
    world.join(2)
    world.settle()
    homes = [location.node_uuid for location in world.status().locations]
    assert homes[0] == homes[2] == uuid_of(2) != homes[1]
    world.where("v0").alive = False
    world.pass_time(91)
    world.settle()
    assert world.status().state == RUNNING


def test_a_node_whose_owner_needs_the_memory_gets_nothing_and_later_something() -> None:
    world = World()
    node = world.join(1)
    node.load = node_pb2.Load(granted_memory_bytes=5)
    world.beat(node)
    world.submit(run_spec(memory=(60,)))
    world.settle()
    assert world.status().state == PLACING
    assert "no room for VNode 'v0': it needs 60 bytes" in world.status().message
    node.load = node_pb2.Load(granted_memory_bytes=60)
    world.pass_time(31)
    world.settle()
    assert world.status().state == RUNNING


def test_a_draining_node_gets_nothing_new() -> None:
    world = World()
    first, _second = world.join(1), world.join(2)
    first.draining = True
    world.beat(first)
    world.submit()
    world.settle()
    assert world.where("v0") is not first
    assert first.vnodes == {}


def test_a_refused_allocation_is_tried_elsewhere() -> None:
    world = World()
    first, second = world.join(1), world.join(2)
    first.refusals[Allocate] = Busy("full after all")
    world.submit(run_spec(memory=(10,)))
    world.settle()
    assert world.status().state == RUNNING
    assert world.where("v0") is second
    assert world.status().generation == 2


def test_the_only_node_is_asked_again_after_a_while() -> None:
    world = World()
    node = world.join(1)
    node.refusals[Allocate] = Busy("full for now")
    world.submit(run_spec(memory=(10,)))
    world.settle()
    assert world.status().state == PLACING
    node.refusals.clear()
    for _ in range(10):
        world.pass_time(1)
        world.settle()
    assert world.status().state == RUNNING


def test_nodes_that_refuse_the_spec_end_the_run() -> None:
    world = World()
    node = world.join(1)
    node.refusals[Allocate] = SpecError("operators[0]", "not of this version")
    world.submit()
    for _ in range(100):
        world.settle()
        world.pass_time(1)
    status = world.status()
    assert status.state == FAILED
    assert "BAD_SPEC: operators[0]: not of this version" in status.message
