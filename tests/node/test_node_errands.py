"""Errands to the store end for their callers in time, whatever the store does, and nothing is lost by that."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from node_world import World, batch, reference, soon

from pnode.errors import BlobMissing, DeadlineExceeded, StoreUnavailable
from pnode.node.errands import Errands
from pnode.storage.s3 import S3Store
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Caller, Deadline
from pnode.transport.tensors import metas, payloads
from pnode.v1 import vnode_pb2
from tests.seaweed import S3Endpoint

SHORT_S = 0.5
# What a busy machine needs to run the thread that waits. The store's own limits are far beyond it.
SLACK_S = 4.0


@contextmanager
def in_time() -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        yield
    assert time.monotonic() - began < SHORT_S + SLACK_S


class Hanging:
    """An errand that goes on until it is let go."""

    def __init__(self) -> None:
        self.go, self.done = threading.Event(), threading.Event()

    def __call__(self) -> str:
        assert self.go.wait(30.0)
        self.done.set()
        return "done"


def test_what_it_returns_or_raises_is_passed_on() -> None:
    errands = Errands()
    assert errands.run("asking", "seven", lambda: 7, soon()) == 7
    assert errands.run("asking", "none", lambda: None, soon()) is None

    def missing() -> None:
        raise BlobMissing("nothing there")

    with pytest.raises(BlobMissing, match="nothing there"):
        errands.run("asking", "missing", missing, soon())
    with pytest.raises(DeadlineExceeded):
        errands.run("asking", "seven", lambda: 7, Deadline.after(-1.0))


def test_nobody_waits_longer_than_its_deadline_and_the_errand_goes_on() -> None:
    errands, hanging = Errands(most=2), Hanging()
    with in_time():
        errands.run("asking", "hanging", hanging, Deadline.after(SHORT_S))
    assert errands.run("asking", "seven", lambda: 7, soon()) == 7
    hanging.go.set()
    assert hanging.done.wait(30.0)


def test_who_leaves_waits_no_longer() -> None:
    errands, hanging, caller = Errands(), Hanging(), Caller()
    threading.Timer(SHORT_S, caller.leave).start()
    with in_time():
        errands.run("asking", "hanging", hanging, Deadline.after(60.0, caller=caller))
    hanging.go.set()


def test_those_that_nobody_waits_for_are_bounded() -> None:
    errands, hanging = Errands(most=2), Hanging()
    for key in range(2):
        with pytest.raises(DeadlineExceeded, match="the store takes longer"):
            errands.run("asking", key, hanging, Deadline.after(0.05))
    with pytest.raises(StoreUnavailable, match="too many") as refusal:
        errands.run("asking", "seven", lambda: 7, soon())
    assert refusal.value.retry_after_s is not None
    hanging.go.set()
    deadline = soon()
    while True:
        try:
            assert errands.run("asking", "seven", lambda: 7, soon()) == 7
            return
        except StoreUnavailable:
            deadline.check()


def test_one_that_is_under_way_is_joined_and_whoever_comes_again_has_what_it_found() -> None:
    errands, go, begun = Errands(most=1), threading.Event(), list[int]()

    def slow() -> int:
        begun.append(1)
        assert go.wait(30.0)
        return len(begun)

    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            errands.run("asking", "it", slow, Deadline.after(0.05), lasting=True)
    go.set()
    assert errands.run("asking", "it", slow, soon()) == 1
    until = soon()
    while errands._under_way:
        until.check()
    # What was fetched for somebody is not kept for the next one.
    assert errands.run("asking", "it", slow, soon()) == 2


def test_what_failed_with_nobody_waiting_is_done_anew() -> None:
    errands, go, found = Errands(), threading.Event(), [BlobMissing("gone"), None]

    def unlucky() -> int:
        assert go.wait(30.0)
        error = found.pop(0)
        if error is not None:
            raise error
        return 7

    with pytest.raises(DeadlineExceeded):
        errands.run("asking", "it", unlucky, Deadline.after(0.05))
    go.set()
    until = soon()
    while errands._under_way:
        until.check()
    assert errands.run("asking", "it", unlucky, soon()) == 7


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def world(s3_endpoint: S3Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Its store is a real S3 server."""
    for name, value in s3_endpoint.environ().items():
        monkeypatch.setenv(name, value)
    store = S3Store(s3_endpoint.bucket, f"errands-{tmp_path.name}", endpoint_url=s3_endpoint.url)
    yield World(tmp_path, ("a", "a"), store=store)
    store.close()


def step(world: World, number: int) -> None:
    for microbatch in range(4):
        world.train(world.request(number, microbatch))
    world.apply(number)


def forward(world: World) -> None:
    head = vnode_pb2.ForwardRequest(fence=world.fence("stage1"), inputs=metas(batch(0).inputs))
    world.homes["stage1"].serving.forward(Parcel(head, payloads(batch(0).inputs)), soon())


def test_a_suspended_store_holds_no_call_beyond_its_deadline_and_no_turn(world: World, s3_endpoint: S3Endpoint) -> None:
    step(world, 0)
    records = world.snapshot(1)
    step(world, 1)
    serving, vnode = world.homes["stage1"].serving, world.vnode("stage1")
    with suspended(s3_endpoint.pid):
        with in_time():
            serving.snapshot(vnode_pb2.SnapshotRequest(fence=world.fence("stage1"), version=2), Deadline.after(SHORT_S))
        forward(world)
        step(world, 2)
        world.generation += 1
        restore = vnode_pb2.RestoreRequest(fence=world.fence("stage1"), record=records[0])
        with in_time():
            serving.restore(restore, Deadline.after(SHORT_S))
        with vnode.turns.taken(Deadline.after(SHORT_S)):
            assert vnode.turns.num_waiting == 0
    world.generation -= 1
    world.restore(records)
    for number in (1, 2):
        step(world, number)
    world.snapshot(3)
    assert world.digest() == reference(3)
