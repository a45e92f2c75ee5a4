"""How messages come in: in time, within a budget, by turns; silent and deaf strangers hold nothing for long."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from transport_clients import address_of, check, send_raw
from transport_fakes import WAIT_S, BlockedVNodes, Calling, FakeOrchestrator, FakeVNodes

from pnode.errors import BadRequest, Busy
from pnode.observe.counters import Counters
from pnode.transport import health
from pnode.transport import server as server_module
from pnode.transport.api import ForwardReply, ForwardRequest
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.intake import COPIES
from pnode.transport.remote import RemoteDoor, RemoteOrchestrator, RemoteVNode
from pnode.transport.retry import Backoff, retry
from pnode.transport.server import Server
from pnode.transport.watch import Watch
from pnode.v1 import orchestrator_pb2, vnode_pb2

Serve = Callable[..., Server]
FORWARD = "/pnode.v1.VNodes/Forward"
CHECK = "/grpc.health.v1.Health/Check"
CHALLENGE = "/pnode.v1.Door/Challenge"
WATCH = "/grpc.health.v1.Health/Watch"
MIB = 2**20


class Doors:
    """Challenges whoever asks, and lets nobody in."""

    def challenge(self, request: object, deadline: object) -> orchestrator_pb2.ChallengeReply:
        return orchestrator_pb2.ChallengeReply(challenge=b"x")

    def join(self, request: object, deadline: object) -> orchestrator_pb2.JoinReply:
        raise Busy("nobody joins here")


@contextmanager
def silent(channel: grpc.Channel, path: str) -> Iterator[Any]:
    """A call that is opened without a deadline and sends nothing; it is cancelled on the way out."""
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(WAIT_S)
        yield from ()

    send: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(path)
    call = send.future(nothing())
    try:
        yield call
    finally:
        call.cancel()
        ended.set()


def channel_to(server: Server, number: int = 0) -> grpc.Channel:
    """A connection of its own for each number."""
    return grpc.insecure_channel(address_of(server), options=[("grpc.primary_user_agent", f"stranger-{number}")])


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = Deadline.after(seconds)
    while not holds():
        assert not deadline.passed
        threading.Event().wait(0.01)


@pytest.mark.parametrize("path", [CHECK, WATCH])
def test_strangers_that_send_nothing_do_not_silence_health(
    serve: Serve, pool: ChannelPool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_RECEIVE_S", 0.2)
    server = serve()
    with channel_to(server) as channel, ExitStack() as stack:
        calls = [stack.enter_context(silent(channel, path)) for _ in range(40)]
        # All of their threads are given back, though nobody hung up.
        assert check(pool, server, "") == health_pb2.HealthCheckResponse.SERVING
        assert all(isinstance(call.exception(timeout=WAIT_S), grpc.RpcError) for call in calls)
        until(lambda: not server._lanes.health.num_calls and not server._lanes.streams.num_calls)


def test_a_message_that_does_not_come_in_time_ends_its_call(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    counters, fake = Counters(), FakeVNodes()
    server = serve(vnodes=fake, max_threads=2, receive_s=0.2, counters=counters)
    with channel_to(server) as channel, silent(channel, FORWARD) as call:
        error = call.exception(timeout=WAIT_S)
        assert isinstance(error, grpc.Call)
        assert error.code() is grpc.StatusCode.CANCELLED
        until(lambda: counters.value("ended.forward") + counters.value("refused.forward.DEADLINE_EXCEEDED") == 1)
        # On a busy machine even this one may not come in time, and is told to come again.
        remote, empty = RemoteVNode(pool, address_of(server)), Parcel(vnode_pb2.ForwardRequest())
        retry(lambda: remote.forward(empty, soon), soon, Backoff(), threading.Event().wait)
    assert len(fake.seen) == 1


def test_one_silent_stranger_leaves_room_and_threads_to_others(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    counters = Counters()
    server = serve(vnodes=FakeVNodes(), max_threads=16, receive_s=WAIT_S, in_flight_bytes=1, counters=counters)
    with channel_to(server) as channel, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(silent(channel, FORWARD))
        # One is received, four wait for room; the others are refused, and a quarter of the threads is enough for them.
        until(lambda: counters.value("refused.forward.BUSY") == 15)
        until(lambda: server._lanes.work.num_calls == 5)
        RemoteVNode(pool, address_of(server)).forward(Parcel(vnode_pb2.ForwardRequest(), [bytes(MIB)]), soon)
    until(lambda: server._lanes.work.num_calls == 0)


def test_one_silent_member_does_not_silence_heartbeats(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    counters = Counters()
    server = serve(orchestrator=FakeOrchestrator(), receive_s=WAIT_S, counters=counters)
    with channel_to(server) as channel, ExitStack() as stack:
        for _ in range(24):
            stack.enter_context(silent(channel, "/pnode.v1.Orchestrator/Heartbeat"))
        # One is received, as if it were of the largest; two wait; the others hold no thread.
        until(lambda: counters.value("refused.heartbeat.BUSY") == 21)
        RemoteOrchestrator(pool, address_of(server)).heartbeat(orchestrator_pb2.HeartbeatRequest(), soon)


def test_silent_strangers_at_the_door_keep_no_member_out_and_soon_no_stranger(
    serve: Serve, pool: ChannelPool, soon: Deadline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_DOOR_RECEIVE_S", 0.5)
    counters = Counters()
    server = serve(
        orchestrator=FakeOrchestrator(),
        door=Doors(),
        max_message_bytes=MIB,
        receive_s=WAIT_S,
        counters=counters,
        control_threads=8,
    )
    with ExitStack() as stack:
        # Of one host they are one caller, however many connections it makes.
        channels = [stack.enter_context(channel_to(server, number)) for number in range(8)]
        calls = [stack.enter_context(silent(channel, CHALLENGE)) for channel in channels * 3]
        until(lambda: counters.value("refused.challenge.BUSY") == 20)
        RemoteOrchestrator(pool, address_of(server)).heartbeat(orchestrator_pb2.HeartbeatRequest(), soon)
        assert all(isinstance(call.exception(timeout=WAIT_S), grpc.RpcError) for call in calls)
        assert RemoteDoor(pool, address_of(server)).challenge(orchestrator_pb2.ChallengeRequest(), soon).challenge


def test_a_call_that_ends_without_a_message_is_a_bad_request(serve: Serve) -> None:
    server = serve(vnodes=FakeVNodes())
    with channel_to(server) as channel:
        for path in (FORWARD, CHECK):
            send: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(path)
            with pytest.raises(grpc.RpcError) as caught:
                send(iter(()), timeout=WAIT_S)
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.details() == "the call brought no message"


def test_messages_beyond_the_budget_wait_for_room_or_are_refused(serve: Serve) -> None:
    vnodes, counters = BlockedVNodes(), Counters()
    # Room for two messages of a mebibyte; one client may hold one of them.
    server = serve(
        vnodes=vnodes, max_message_bytes=MIB + 1000, in_flight_bytes=1, receive_s=0.8, max_threads=8, counters=counters
    )
    request = Parcel(vnode_pb2.ForwardRequest(), [bytes(MIB)])
    soon = Deadline.after(WAIT_S)
    with ExitStack() as stack:
        remotes = [RemoteVNode(stack.enter_context(ChannelPool()), address_of(server)) for _ in range(3)]
        held = [Calling(lambda remote=remote: remote.forward(request, soon)) for remote in remotes[:2]]  # type: ignore[misc]
        vnodes.wait_inside(2)
        for remote in remotes:
            with pytest.raises(Busy, match="no memory for messages is free") as refusal:
                remote.forward(request, soon)
            assert refusal.value.retry_after_s == 0.5
        vnodes.release.set()
        assert [call.wait().error for call in held] == [None, None]
        remotes[2].forward(request, soon)
    assert counters.value("refused.forward.BUSY") == 3


def test_work_that_was_admitted_makes_room_for_the_next_message(serve: Serve, pool: ChannelPool) -> None:
    class Admitting(BlockedVNodes):
        def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
            deadline.caller.hand_over()
            return super().forward(request, deadline)

    vnodes = Admitting()
    server = serve(vnodes=vnodes, in_flight_bytes=1, max_message_bytes=MIB + 1000)
    request, soon = Parcel(vnode_pb2.ForwardRequest(), [bytes(MIB)]), Deadline.after(WAIT_S)
    calls = [Calling(lambda: RemoteVNode(pool, address_of(server)).forward(request, soon)) for _ in range(6)]
    vnodes.wait_inside(6)
    vnodes.release.set()
    assert [call.wait().error for call in calls] == [None] * 6


READS_NOTHING = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.max_receive_message_length", -1)])
call = channel.unary_unary("/pnode.v1.VNodes/Forward").future(bytes.fromhex(sys.argv[2]) + bytes(int(sys.argv[3])))
print("sent", flush=True)
sys.stdin.read()
"""


def test_a_reply_that_nobody_reads_is_counted_until_its_connection_is_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_KEEPALIVE_S", 0.5)
    monkeypatch.setattr(server_module, "_KEEPALIVE_TIMEOUT_S", 1.0)
    vnodes = BlockedVNodes()
    server = serve(vnodes=vnodes)
    size = 8 * MIB
    prefix = vnode_pb2.ForwardRequest(payloads=[bytes(size)]).SerializeToString()[:-size]
    command = [sys.executable, "-c", READS_NOTHING, address_of(server), prefix.hex(), str(size)]
    turns = server.served[0].limits.intake.turns
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        try:
            vnodes.wait_inside(1)
            client.send_signal(signal.SIGSTOP)
            assert sum(turns._held.values()) >= COPIES * size
            vnodes.release.set()
            until(lambda: not server._lanes.work.num_calls)
            assert sum(turns._held.values()) >= COPIES * size, "the reply is still here"
            until(lambda: not turns._held)
        finally:
            client.kill()


def test_garbage_costs_no_room_afterwards(serve: Serve, pool: ChannelPool) -> None:
    server = serve(vnodes=FakeVNodes())
    for _ in range(20):
        with pytest.raises(BadRequest):
            send_raw(pool, server, FORWARD, b"\xff" * 1000)
    until(lambda: not server.served[0].limits.intake.turns._held)


# The watch


def test_what_takes_too_long_is_ended_once_in_the_order_of_its_time() -> None:
    watch, ended, done = Watch(), list[str](), threading.Event()
    late = watch.begin(60.0, lambda: ended.append("late"))
    watch.begin(0.2, done.set)
    watch.begin(0.1, lambda: ended.append("second"))
    watch.begin(0.05, lambda: ended.append("first"))
    with watch.over(0.01, lambda: ended.append("over")):
        until(lambda: "over" in ended)
    with watch.over(60.0, lambda: ended.append("never")):
        pass
    assert done.wait(WAIT_S)
    late.call_off()
    watch.close()
    assert ended == ["over", "first", "second"]


def test_a_watch_of_nothing_has_no_thread() -> None:
    before = threading.active_count()
    watch = Watch()
    assert threading.active_count() == before
    watch.close()


def test_connections_beyond_the_most_are_closed_at_once(
    serve: Serve, pool: ChannelPool, soon: Deadline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_MAX_CONNECTIONS", 3)
    server = serve(vnodes=FakeVNodes())
    with ExitStack() as stack:
        remote = RemoteVNode(pool, address_of(server))
        remote.forward(Parcel(vnode_pb2.ForwardRequest()), soon)
        strangers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S)) for _ in range(6)
        ]
        assert sum(is_closed(each) for each in strangers) == 4
        remote.forward(Parcel(vnode_pb2.ForwardRequest()), soon)


def is_closed(stranger: socket.socket) -> bool:
    """Whether the server has hung up: it says something of its own to those whom it keeps."""
    try:
        return stranger.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("limit", ["_DOOR_IDLE_S", "_DOOR_AGE_S"])
def test_a_connection_to_the_door_does_not_last(serve: Serve, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, limit, 0.5)
    server, states, went = serve(door=Doors()), list[grpc.ChannelConnectivity](), threading.Event()

    def changed(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.IDLE and grpc.ChannelConnectivity.READY in states:
            went.set()
        states.append(state)

    with channel_to(server) as channel:
        channel.subscribe(changed, try_to_connect=True)
        assert went.wait(5.0), states


def test_who_connects_and_says_nothing_is_hung_up_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server_module._HANDSHAKE_S <= 3.0
    monkeypatch.setattr(server_module, "_HANDSHAKE_S", 0.3)
    server = serve(vnodes=FakeVNodes())
    with socket.create_connection(("127.0.0.1", server.port), timeout=5.0) as stranger:
        while not is_closed(stranger):
            pass
