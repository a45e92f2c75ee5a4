"""Forwards that wait for one worker are joined, and nobody could tell: bits, versions and refusals are those of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from node_world import ROWS, World, soon

from pnode.client.batch import from_array
from pnode.errors import BadRequest, Busy, DeadlineExceeded, PNodeError, StaleFence, WorkerLost
from pnode.node.forwards import JOINED
from pnode.transport.api import ForwardReply, ForwardRequest
from pnode.transport.channels import MAX_MESSAGE_BYTES
from pnode.transport.codec import Parcel, encode
from pnode.transport.deadline import Caller, Deadline
from pnode.transport.tensors import metas, payloads
from pnode.v1 import vnode_pb2
from pnode.vnode.tensors import TensorBytes, num_bytes

# Any bits: NaN, infinities, subnormals and zeros of both signs among them.
FLOATS = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32))
REQUESTS = st.lists(
    st.integers(1, ROWS).flatmap(lambda rows: arrays(np.float32, (rows, 3, 4), elements=FLOATS)), min_size=1, max_size=6
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def asked(world: World, *tensors: TensorBytes, vnode: str = "stage1") -> ForwardRequest:
    return Parcel(vnode_pb2.ForwardRequest(fence=world.fence(vnode), inputs=metas(tensors)), payloads(tensors))


def rows(world: World, values: np.ndarray) -> ForwardRequest:
    return asked(world, from_array("tokens", values))


def alone(world: World, request: ForwardRequest) -> bytes:
    return encode(world.homes["stage1"].serving.forward(request, soon()), MAX_MESSAGE_BYTES)


def by(name: str, seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds, caller=Caller(name))


@contextmanager
def busy(world: World, vnode: str = "stage1") -> Iterator[None]:
    """The worker has no time until this ends."""
    turns = world.vnode(vnode).turns
    ticket = turns.ask("busy")
    try:
        assert turns.wait(ticket, soon())
        yield
    finally:
        turns.give(ticket)


def waiting(
    world: World, threads: ThreadPoolExecutor, requests: Sequence[tuple[ForwardRequest, Deadline]]
) -> list[Future[ForwardReply]]:
    """Each in the queue before the next comes."""
    futures = []
    for request, deadline in requests:
        before = world.vnode("stage1").turns.num_waiting
        futures.append(threads.submit(world.homes["stage1"].serving.forward, request, deadline))
        while world.vnode("stage1").turns.num_waiting == before and not futures[-1].done():
            pass
    return futures


def outcome(future: Future[ForwardReply]) -> bytes | type[BaseException]:
    error = future.exception(timeout=20)
    return type(error) if error is not None else encode(future.result(0), MAX_MESSAGE_BYTES)


@given(REQUESTS)
def test_joined_replies_are_those_of_single_calls_to_the_bit(world: World, values: list[np.ndarray]) -> None:
    requests = [rows(world, each) for each in values]
    singles = [alone(world, request) for request in requests]
    with ThreadPoolExecutor(6) as threads:
        with busy(world):
            futures = waiting(world, threads, [(request, by(str(i % 3))) for i, request in enumerate(requests)])
        assert [outcome(future) for future in futures] == singles


def test_what_waits_is_one_command_up_to_the_rows_of_the_spec(tmp_path: Path) -> None:
    world = World(tmp_path)
    part = np.ones((ROWS // 4, 3, 4), np.float32)
    alone(world, rows(world, part))
    commands: list[str] = []
    world.homes["stage1"].workers["stage1"]._ran = commands.append
    with ThreadPoolExecutor(6) as threads:
        with busy(world):
            futures = waiting(world, threads, [(rows(world, part * i), by("a")) for i in range(6)])
        replies = [outcome(future) for future in futures]
    assert commands == ["forward", "forward"], "four of a quarter each, then two"
    assert world.nodes["a"].counters.value(JOINED) == 6
    assert len(set(replies)) == 6
    assert replies == [alone(world, rows(world, part * i)) for i in range(6)]


def test_one_bad_request_among_good_ones_fails_alone(world: World) -> None:
    good = rows(world, np.ones((1, 3, 4), np.float32))
    expected = alone(world, good)
    wrong_shape = rows(world, np.ones((1, 4, 3), np.float32))
    wrong_dtype = rows(world, np.ones((1, 3, 4), np.int64))
    too_many = rows(world, np.ones((ROWS + 1, 3, 4), np.float32))
    none = rows(world, np.ones((0, 3, 4), np.float32))
    stale = rows(world, np.ones((1, 3, 4), np.float32))
    requests = [good, wrong_shape, good, wrong_dtype, too_many, none, good]
    with ThreadPoolExecutor(8) as threads:
        with busy(world):
            futures = waiting(world, threads, [(each, by(str(i % 2))) for i, each in enumerate(requests)])
        outcomes = [outcome(future) for future in futures]
        assert outcomes == [expected, BadRequest, expected, BadRequest, BadRequest, BadRequest, expected]
        with busy(world):
            futures = waiting(world, threads, [(stale, by("a")), (stale, by("b"))])
            vnode = world.vnode("stage1")
            vnode._fence.epoch += 1
        assert [outcome(future) for future in futures] == [StaleFence, StaleFence]
        vnode._fence.epoch -= 1


def test_what_a_worker_refuses_of_all_is_asked_of_each_again(tmp_path: Path) -> None:
    """The front cannot judge values: whatever a joined command was refused for is found by running each alone."""
    world = World(tmp_path)
    good = rows(world, np.ones((1, 3, 4), np.float32))
    expected = alone(world, good)
    worker = world.homes["stage1"].workers["stage1"]
    run = worker._commands

    def picky(command: str, fields: dict[str, object], tensors: Sequence[TensorBytes]) -> object:
        if np.isnan(np.frombuffer(tensors[0].payload, np.float32)).any():
            raise BadRequest("no NaN here")
        return run(command, fields, tensors)

    worker._commands = picky  # type: ignore[assignment]
    bad = rows(world, np.full((1, 3, 4), np.nan, np.float32))
    with ThreadPoolExecutor(3) as threads:
        with busy(world):
            futures = waiting(world, threads, [(each, by("a")) for each in (good, bad, good)])
        assert [outcome(future) for future in futures] == [expected, BadRequest, expected]
    assert world.nodes["a"].counters.value(JOINED) == 0


def test_a_worker_that_dies_under_a_joined_command_fails_all_of_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    request = rows(world, np.ones((1, 3, 4), np.float32))
    alone(world, request)
    with ThreadPoolExecutor(3) as threads:
        with busy(world):
            futures = waiting(world, threads, [(request, by("a"))] * 3)
            world.homes["stage1"].workers["stage1"].die()
        assert [outcome(future) for future in futures] == [WorkerLost] * 3


def test_a_reply_of_the_wrong_rows_is_nobodys(world: World) -> None:
    request = rows(world, np.ones((2, 3, 4), np.float32))
    alone(world, request)
    worker = world.homes["stage1"].workers["stage1"]
    run = worker._commands

    def short(command: str, fields: dict[str, object], tensors: Sequence[TensorBytes]) -> object:
        about, (output, *rest) = run(command, fields, tensors)
        shape = (1, *output.shape[1:])
        return about, [TensorBytes(output.name, output.dtype, shape, bytes(num_bytes(output.dtype, shape))), *rest]

    worker._commands = short  # type: ignore[assignment]
    try:
        with ThreadPoolExecutor(2) as threads:
            with busy(world):
                futures = waiting(world, threads, [(request, by("a"))] * 2)
            assert [outcome(future) for future in futures] == [PNodeError] * 2
    finally:
        worker._commands = run


def test_a_profile_that_promises_nothing_is_never_joined(tmp_path: Path) -> None:
    world = World(tmp_path)
    request = rows(world, np.ones((1, 3, 4), np.float32))
    alone(world, request)
    world.vnode("stage1").spec.profile = "torch"
    with ThreadPoolExecutor(3) as threads:
        with busy(world):
            futures = waiting(world, threads, [(request, by("a"))] * 3)
        assert len({outcome(future) for future in futures}) == 1
    assert world.nodes["a"].counters.value(JOINED) == 0


def test_a_flood_is_refused_for_its_own_part_and_the_other_client_served_next(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.vnode("stage1").spec.profile = "torch"  # one at a time, so that the order can be seen
    order: list[bytes] = []
    worker = None
    request = rows(world, np.ones((1, 3, 4), np.float32))
    alone(world, request)
    worker = world.homes["stage1"].workers["stage1"]
    run = worker._commands

    def noting(command: str, fields: dict[str, object], tensors: Sequence[TensorBytes]) -> object:
        order.append(bytes(tensors[0].payload)[:4])
        return run(command, fields, tensors)

    worker._commands = noting  # type: ignore[assignment]
    flood = [(rows(world, np.full((1, 3, 4), 1, np.float32)), by("flood")) for _ in range(6)]
    other = [(rows(world, np.full((1, 3, 4), 2, np.float32)), by("other"))]
    with ThreadPoolExecutor(8) as threads:
        with busy(world):
            futures = waiting(world, threads, flood)
            with pytest.raises(Busy, match="6 calls of this client wait for VNode 'stage1'") as refusal:
                world.homes["stage1"].serving.forward(*flood[0])
            assert refusal.value.retry_after_s is not None
            futures += waiting(world, threads, other)
        assert all(isinstance(outcome(future), bytes) for future in futures)
    one, two = np.float32(1).tobytes(), np.float32(2).tobytes()
    assert order == [one, two, one, one, one, one, one]


def test_a_caller_that_has_gone_costs_no_command(tmp_path: Path) -> None:
    world = World(tmp_path)
    request = rows(world, np.ones((1, 3, 4), np.float32))
    expected = alone(world, request)
    commands: list[str] = []
    world.homes["stage1"].workers["stage1"]._ran = commands.append
    leaver = Caller("leaver")
    with ThreadPoolExecutor(3) as threads:
        with busy(world):
            futures = waiting(world, threads, [(request, Deadline.after(20, caller=leaver)), (request, by("stays"))])
            leaver.leave()
            assert outcome(futures[0]) is DeadlineExceeded
        assert outcome(futures[1]) == expected
    assert commands == ["forward"]


def test_forward_of_the_last_vnode_gives_its_logits_joined_too(world: World) -> None:
    values = np.ones((2, 3, 8), np.float32)
    spec = world.specs[2]
    given_ = [from_array(each.name, np.resize(values, (2, *each.shape)).astype(np.float32)) for each in spec.inputs]
    request = asked(world, *given_, vnode="stage3")
    serving, turns = world.homes["stage3"].serving, world.vnode("stage3").turns
    expected = serving.forward(request, soon())
    with ThreadPoolExecutor(2) as threads:
        with busy(world, "stage3"):
            futures = [threads.submit(serving.forward, request, by(name)) for name in "ab"]
            while turns.num_waiting < 2:
                pass
        assert [future.result(20) for future in futures] == [expected] * 2
    assert world.homes["stage3"].counters.value(JOINED) == 2
