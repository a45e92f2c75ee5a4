"""Connections that bring no call: each is counted, whatever it failed by, and no connection of a member is."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnode.observe.counters import Counters
from pnode.security.authority import Authority
from pnode.security.certificates import TlsIdentity, new_key
from pnode.security.principals import DRIVER, ORCHESTRATOR, Principal
from pnode.transport import arrivals
from pnode.transport.arrivals import NO_CALL, Arrivals
from pnode.transport.credentials import ServerTls, channel_credentials
from pnode.transport.guards import TokenGuard
from pnode.transport.server import Server, make_server
from pnode.transport.watch import Due, Watch

pytestmark = pytest.mark.timeout(60)

WAIT_S = 30.0
DESCRIBE = "/pnode.v1.VNodes/Describe"


class Told(Counters):
    """Counters that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def add(self, name: str, number: int = 1) -> None:
        with self._changed:
            super().add(name, number)
            self._changed.notify_all()

    def wait_for(self, name: str, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.value(name) >= count, WAIT_S)


class Members:
    """A server of members, who may call nothing at all: that they are refused by words is enough."""

    def __init__(self) -> None:
        self.counters = Told()
        self.authority = Authority.fresh()
        shown = self.authority.own(3600.0)
        guard = TokenGuard(lambda: None, lambda: None, tls=True)
        self.server: Server = make_server(
            vnodes=cast("Any", _Nothing()), guard=guard, tls=ServerTls(lambda: shown), counters=self.counters
        )
        self.server.start()

    def call(self, tls: TlsIdentity, path: str = DESCRIBE) -> grpc.StatusCode:
        options = [("grpc.ssl_target_name_override", ORCHESTRATOR.dns)]
        with grpc.secure_channel(f"127.0.0.1:{self.server.port}", channel_credentials(tls), options=options) as channel:
            send: Any = channel.unary_unary(path)
            code: grpc.StatusCode = send.future(b"", timeout=WAIT_S).code()
            return code

    def certified(self, authority: Authority) -> TlsIdentity:
        key = new_key()
        who = Principal(DRIVER, "5f0c0f6e-34e0-4d8e-9f5c-5f6e34e04d8e")
        return TlsIdentity(key.key, authority.issue(key.request, who, 3600.0), self.authority.pem)

    def says(self, words: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port), WAIT_S) as connection:
            connection.sendall(words)
            if words:
                assert connection.recv(1000) == b""


class _Nothing:
    def __getattr__(self, name: str) -> object:
        return name


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> Iterator[Members]:
    monkeypatch.setattr(arrivals, "_PATIENCE_S", 1.0)
    served = Members()
    yield served
    served.server.stop(0.0)


def test_every_failed_handshake_is_counted_and_no_member(members: Members, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        member = members.certified(members.authority)
        unknown, health = "/pnode.v1.VNodes/Nothing", "/grpc.health.v1.Health/Check"
        codes = [members.call(member, path) for path in (DESCRIBE, DESCRIBE, health)]
        assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 2 + [grpc.StatusCode.OK]
        nobody = TlsIdentity(b"", b"", members.authority.pem)
        for stranger in (nobody, members.certified(Authority.fresh())):
            assert members.call(stranger) is grpc.StatusCode.UNAVAILABLE
        members.says(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        members.says(b"")
        assert members.counters.wait_for(NO_CALL, 4)
        # Another one, so that a fifth by mistake would have been counted before it.
        assert members.call(member, unknown) is grpc.StatusCode.UNIMPLEMENTED
        assert members.counters.wait_for(NO_CALL, 5)
    assert members.counters.value(NO_CALL) == 5
    told = [record.message for record in caplog.records if "refused connections" in record.message]
    assert told
    assert all("no certificate of this network" in line for line in told)


# The counting, by hand


class Later(Watch):
    """A watch whose time is moved by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._asked: list[tuple[float, Callable[[], object]]] = []

    def begin(self, seconds: float, end: Callable[[], object]) -> Due:
        self._asked.append((self.now + seconds, end))
        return Due(self, end)

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while due := sorted((at, index) for index, (at, _) in enumerate(self._asked) if at <= until):
            at, end = self._asked.pop(due[0][1])
            self.now = max(self.now, at)
            end()
        self.now = until

    @property
    def num_asked(self) -> int:
        return len(self._asked)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 8.0)), max_size=40))
def test_who_calls_at_once_is_never_counted_and_who_does_not_always_is(arrived: list[tuple[bool, float]]) -> None:
    later, counters = Later(), Counters()
    found = Arrivals(later, counters, lambda: later.now)
    for number, (calls, pause_s) in enumerate(arrived):
        found.came()
        if calls:
            found.heard(f"peer {number}")
            found.heard(f"peer {number}")
        assert later.num_asked <= 1, "however many come, there is one timer"
        later.pass_time(pause_s)
        assert counters.value(NO_CALL) <= sum(not each for each, _ in arrived[: number + 1])
    later.pass_time(20.0)
    assert counters.value(NO_CALL) == sum(not calls for calls, _ in arrived)
    assert later.num_asked == 0


def test_a_flood_of_strangers_is_no_flood_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    later, counters = Later(), Counters()
    found = Arrivals(later, counters, lambda: later.now)
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            found.came()
            later.pass_time(0.001)
        later.pass_time(20.0)
    assert counters.value(NO_CALL) == 1000
    assert 1 <= len(caplog.records) <= 11


def test_another_connection_from_the_same_port_is_a_new_one() -> None:
    later, counters = Later(), Counters()
    found = Arrivals(later, counters, lambda: later.now)
    for _ in range(3):
        found.came()
        found.heard("peer")
        later.pass_time(100.0)
    assert counters.value(NO_CALL) == 0


def test_a_connection_that_wakes_hides_no_stranger_who_comes_later() -> None:
    later, counters = Later(), Counters()
    found = Arrivals(later, counters, lambda: later.now)
    found.came()
    found.heard("peer")
    later.pass_time(100.0)
    found.heard("peer")
    found.came()
    for _ in range(10):
        later.pass_time(1.0)
        found.heard("peer")
    assert counters.value(NO_CALL) == 1


def test_what_is_remembered_of_peers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_MAX_HEARD", 8)
    found = Arrivals(Later(), Counters())
    for number in range(100):
        found.heard(f"peer {number}")
    assert len(found._heard) == 8
