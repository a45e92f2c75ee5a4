"""Bad weather on purpose is real: what a servicer sees and what callers learn agree with what was told."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from transport_clients import address_of
from transport_fakes import FakeVNodes, fence

from pnode.errors import PeerUnavailable
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteVNode
from pnode.transport.server import Server
from pnode.transport.weather import Rates, Weather
from pnode.v1 import vnode_pb2

Serve = Callable[..., Server]


def steps(vnodes: FakeVNodes) -> list[int]:
    return [request.step for _, request, _ in vnodes.seen if isinstance(request, vnode_pb2.ApplyRequest)]


def apply(remote: RemoteVNode, step: int) -> bool:
    """Whether it was answered."""
    try:
        remote.apply(vnode_pb2.ApplyRequest(fence=fence(), step=step), Deadline.after(20))
    except PeerUnavailable:
        return False
    return True


def weathered(serve: Serve, rates: Rates, seed: str = "1", calls: int = 120) -> tuple[FakeVNodes, Counter[str], int]:
    """Many calls, four at a time; returns what was seen, what was told, and how many calls were answered."""
    vnodes, told = FakeVNodes(), Counter[str]()
    server = serve(vnodes=vnodes)
    with ChannelPool(weather=Weather(rates, seed, lambda kind: told.update([kind]))) as pool:
        remote = RemoteVNode(pool, address_of(server))
        with ThreadPoolExecutor(4) as threads:
            answered = sum(threads.map(lambda step: apply(remote, step), range(calls)))
        for late in [thread for thread in threading.enumerate() if thread.name == "duplicate"]:
            late.join(10.0)
    server.stop(5.0)
    return vnodes, told, answered


def test_half_of_what_is_lost_was_carried_out(serve: Serve) -> None:
    vnodes, told, answered = weathered(serve, Rates(drop=0.4))
    seen = steps(vnodes)
    assert len(set(seen)) == len(seen)
    assert answered == 120 - told["drop"]
    lost_requests = 120 - len(seen)
    assert 0 < lost_requests < told["drop"], "some requests were lost, and some replies"


def test_duplicates_really_arrive(serve: Serve) -> None:
    vnodes, told, answered = weathered(serve, Rates(duplicate=0.3))
    seen = Counter(steps(vnodes))
    assert answered == 120
    assert set(seen) == set(range(120))
    assert sum(seen.values()) - 120 == told["duplicate"] > 0


def test_calls_are_overtaken(serve: Serve) -> None:
    vnodes, told, answered = weathered(serve, Rates(reorder=0.2))
    assert answered == 120
    assert told["reorder"] > 0
    seen = steps(vnodes)
    assert sorted(seen) == list(range(120))
    assert sum(seen.index(step) > seen.index(step + 4) for step in range(110)) > 0, "by calls that began after them"


def test_a_delay_counts_against_the_deadline(serve: Serve) -> None:
    vnodes, told, answered = weathered(serve, Rates(delay=0.5), calls=16)
    assert (answered, sorted(steps(vnodes))) == (16, list(range(16)))
    assert told["delay"] > 0


@pytest.mark.parametrize("rates", [Rates(drop=0.3), Rates(drop=0.2, duplicate=0.2, delay=0.02, reorder=0.1)])
def test_the_seed_decides(rates: Rates) -> None:
    """What befalls the n-th call; which call is the n-th is up to the threads."""

    def fates(seed: str) -> list[str]:
        found: list[str] = []
        weather = Weather(rates, seed, found.append)
        for _ in range(60):
            try:
                weather.carry(lambda _: b"", "peer", "call", Deadline.after(0.002))
            except PeerUnavailable:
                found.append("lost")
        return found

    assert fates("1") == fates("1") != fates("2")
    assert Rates().calm
    assert not rates.calm
