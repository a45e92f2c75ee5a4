"""The gRPC server of a process: the services that it is given, health and reflection, on lanes of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from pnode.errors import ConfigError
from pnode.observe.counters import Counters
from pnode.transport import arenas, health, methods
from pnode.transport.api import DoorApi, NodeApi, OrchestratorApi, RunsApi, VNodesApi
from pnode.transport.arrivals import Arrivals
from pnode.transport.channels import MAX_MESSAGE_BYTES, MAX_WHOLE_BYTES, size_options
from pnode.transport.credentials import ServerTls
from pnode.transport.deadline import Deadline
from pnode.transport.guards import Guard, OpenGuard
from pnode.transport.health import Health
from pnode.transport.intake import COPIES, Intake
from pnode.transport.lanes import Lane
from pnode.transport.ports import bind
from pnode.transport.refusals import Refusals
from pnode.transport.servicers import CallLimits, Router
from pnode.transport.turns import Bounds
from pnode.transport.watch import Watch

# Control calls are short: a burst of heartbeats waits its turn; this many may.
_CONTROL_QUEUE = 1024
# Where VNodes are served only the orchestrator makes control calls.
_NODE_QUEUE = 128
# Probes are few.
_HEALTH_QUEUE = 64
# Refusals share one thread and wait for no message; beyond this many at once gRPC itself refuses.
_MAX_REFUSALS = 4096
# A client that is gone, or has stopped to read, is found out by pings, whatever calls of it are under way.
_KEEPALIVE_S = 60.0
_KEEPALIVE_TIMEOUT_S = 20.0
# Of one connection, beside its calls to VNodes.
_CONTROL_STREAMS = 64
_MAX_CONNECTIONS = 1024
# At the door, where anybody may call.
_DOOR_RECEIVE_S = 3.0
_DOOR_IDLE_S = 10.0
_DOOR_AGE_S = 60.0
# Who connects and says nothing is hung up on.
_HANDSHAKE_S = 3.0
# Of one caller of an orchestrator so many calls wait for room, each with a thread; further ones are refused.
_WAITING_EACH = 2
# The memory of messages in flight, unless configured.
IN_FLIGHT_BYTES = 512 * 2**20
# Of a message to a VNode so much may come before anybody asks for it, and a sender need not wait for us: a MiB of
# tensors and what stands before them.
_AHEAD_BYTES = (1 << 20) + (64 << 10)
# What a sender may put into one frame. gRPC's 16 KiB make a thousand of a large message.
_FRAME_BYTES = 1 << 20
# After the grace, this long for replies on their way out and for cancelled handlers to notice.
_FLUSH_S = 0.5
_NOTICE_S = 2.0


def make_server(
    *,
    vnodes: VNodesApi | None = None,
    node: NodeApi | None = None,
    orchestrator: OrchestratorApi | None = None,
    runs: RunsApi | None = None,
    door: DoorApi | None = None,
    guard: Guard | None = None,
    tls: ServerTls | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    max_whole_bytes: int = MAX_WHOLE_BYTES,
    max_threads: int = 64,
    control_threads: int = 8,
    default_deadline_s: float = 60.0,
    max_deadline_s: float = 3600.0,
    in_flight_bytes: int = IN_FLIGHT_BYTES,
    receive_s: float = 20.0,
    counters: Counters | None = None,
) -> Server:
    """A server bound to its port, not yet started. Port 0: the system chooses.

    `max_threads` calls to VNodes run at once, and further ones get Busy at once: it must cover the windows of all
    VNodes served here, or a chain that comes back to this process could find no thread. Calls that set no deadline
    have `default_deadline_s`, and none has more than `max_deadline_s`.

    `guard` says who may make which call; without one everybody may, so there must be one beyond loopback.

    A message over `max_message_bytes` comes in pieces, up to `max_whole_bytes`; there is room for one at least.
    The messages of calls to VNodes that are here at once take at most `in_flight_bytes`, those that a VNode's window
    has admitted not counted; those of the other services a quarter of that each, at most. A message must have come
    within `receive_s`, and within three seconds at the door.

    Raises ConfigError where the host is beyond loopback without TLS and a guard, or the port cannot be bound.
    """
    if tls is not None and guard is None:
        raise ConfigError("a server with TLS needs a guard: certificates alone allow nothing")
    arenas.use_few()
    control_queue = _CONTROL_QUEUE if vnodes is None else _NODE_QUEUE
    lanes = _Lanes(max_threads=max_threads, control_threads=control_threads, control_queue=control_queue)
    watch, counters = Watch(), counters or Counters()
    if tls is not None and tls.of_members:
        # At a door anybody may look at the certificate and go: joiners do.
        arrivals = Arrivals(watch, counters)
        tls = tls._replace(came=arrivals.came)
        lanes.tell(arrivals.heard)

    def limits(budget_bytes: int, queue: Bounds | None, receive_s: float = receive_s) -> CallLimits:
        intake = Intake(
            watch,
            budget_bytes=budget_bytes,
            max_message_bytes=max_message_bytes,
            receive_s=receive_s,
            queue=queue,
            max_whole_bytes=max_whole_bytes,
        )
        return CallLimits(
            max_message_bytes,
            max_whole_bytes,
            default_deadline_s,
            max_deadline_s,
            intake,
            guard or OpenGuard(),
            Refusals(counters),
        )

    # No one caller's messages, that may be slow to come, take all threads. Nodes are told things by few, and briefly.
    waiting = Bounds(most=max(4, max_threads * 3 // 4), most_each=max(4, max_threads // 4))
    # What waits for room is here already, as far as it may come unasked for.
    work = limits(in_flight_bytes - waiting.most * _AHEAD_BYTES, waiting)
    control = limits(in_flight_bytes // 4, None)
    # An orchestrator has many callers: at most half of the threads receive messages, and of one caller half of those.
    few_bytes = min(in_flight_bytes // 4, control_threads // 2 * COPIES * max_message_bytes)
    some = Bounds(most=max(1, control_threads - 2), most_each=_WAITING_EACH)
    members, drivers = limits(few_bytes, some), limits(few_bytes, some)
    strangers = limits(few_bytes, some, min(receive_s, _DOOR_RECEIVE_S))
    served = [
        _Served(service, api, lane, held_to)
        for service, api, lane, held_to in (
            (methods.VNODES, vnodes, lanes.work, work),
            (methods.PNODE, node, lanes.control, control),
            (methods.ORCHESTRATOR, orchestrator, lanes.control, members),
            (methods.RUNS, runs, lanes.runs, drivers),
            (methods.DOOR, door, lanes.door, strangers),
        )
        if api is not None
    ]
    return Server(served, lanes, watch, counters, max_message_bytes, host, port, tls)


class _Served(NamedTuple):
    """A service, who implements it, where its calls run, and what they are held to."""

    service: ServiceDescriptor
    api: object
    lane: Lane
    limits: CallLimits


class _Lanes:
    """The thread pools of a server. None makes a thread before its first call."""

    def __init__(self, *, max_threads: int, control_threads: int, control_queue: int) -> None:
        self.work = Lane("work", threads=max_threads)
        self.control = Lane("control", threads=control_threads, queue=control_queue)
        # A driver's calls may take as long as a checkpoint of all VNodes; heartbeats do not wait behind them.
        self.runs = Lane("runs", threads=control_threads, queue=_CONTROL_QUEUE)
        # And members do not wait behind strangers.
        self.door = Lane("door", threads=control_threads, queue=_CONTROL_QUEUE)
        self.health = Lane("health", threads=2, queue=_HEALTH_QUEUE)
        self.streams = Lane("streams", threads=16)
        self.refusals = Lane("refusals", threads=1, queue=_MAX_REFUSALS)

    @property
    def calls(self) -> tuple[Lane, ...]:
        """Those whose calls are worth waiting for."""
        return (self.work, self.control, self.runs, self.door)

    @property
    def every(self) -> tuple[Lane, ...]:
        return (*self.calls, self.health, self.streams, self.refusals)

    def tell(self, heard: Callable[[str], None]) -> None:
        """Have somebody told by whose connection each call came."""
        for lane in self.every:
            lane.heard = heard


class Server:
    """A server with its port. `start` serves, `stop` ends in good order; neither can be undone."""

    def __init__(
        self,
        served: list[_Served],
        lanes: _Lanes,
        watch: Watch,
        counters: Counters,
        max_message_bytes: int,
        host: str,
        port: int,
        tls: ServerTls | None,
    ) -> None:
        self.served = served
        self._names = [each.service.full_name for each in served]
        self._lanes = lanes
        self._watch = watch
        self._router = Router(lanes.refusals, counters)
        for service, api, lane, limits in served:
            self._router.serve(service, api, lane, limits)
        self._health = Health(self._names, watch)
        self._health.add_to(self._router, lanes.health, lanes.streams)
        health.add_reflection(self._router, self._names, lanes.streams, watch)
        self._inner = grpc.server(
            lanes.work,
            handlers=[self._router],
            options=[
                *_options(max_message_bytes, lanes.work.capacity),
                *(_door_options() if [each.service for each in served] == [methods.DOOR] else []),
                *(_tensor_options(max_message_bytes) if methods.VNODES in [each.service for each in served] else []),
            ],
            maximum_concurrent_rpcs=sum(lane.capacity for lane in lanes.every) + _MAX_REFUSALS,
        )
        self.port = bind(self._inner, host, port, tls)
        self._turning = threading.Lock()
        self._started = False
        self._ended: bool | None = None

    def start(self) -> None:
        """Answer calls, and say so in health."""
        with self._turning:
            self._start()
        for name in ("", *self._names):
            self._health.set(name, serving=True)

    def set_health(self, name: str, *, serving: bool) -> None:
        """What health says of one service, by its full name or by any other that operators may watch."""
        self._health.set(name, serving=serving)

    def stop(self, grace_s: float) -> bool:
        """Refuse new calls, wait so long for those in flight, then cancel what is left. Health answers until the end.

        Returns whether every handler has ended; one that heeds no deadline is left behind. Calling it again returns
        the same.
        """
        with self._turning:
            if self._ended is None:
                self._ended = self._stop(Deadline.after(grace_s))
            return self._ended

    def _start(self) -> None:
        if not self._started:
            self._inner.start()
            self._started = True

    def _stop(self, deadline: Deadline) -> bool:
        self._router.close(spared=health.PATHS)
        self._health.stop_serving()
        # gRPC gives the port of a server back only if that has run.
        self._start()
        for lane in self._lanes.calls:
            lane.wait_empty(deadline.left_s())
        self._health.close()
        terminated = self._inner.stop(_FLUSH_S).wait(_FLUSH_S + _NOTICE_S)
        noticed = Deadline.after(_NOTICE_S)
        ended = all(lane.wait_empty(noticed.left_s()) for lane in self._lanes.every)
        # The pools must outlive gRPC's own thread, which would die submitting a call to one that is shut.
        if terminated:
            for lane in self._lanes.every:
                lane.shutdown(wait=ended, cancel_futures=True)
        self._watch.close()
        return terminated and ended


def _options(max_message_bytes: int, num_calls: int) -> list[tuple[str, int]]:
    return [
        # Two servers on one port would share its calls in silence.
        ("grpc.so_reuseport", 0),
        *size_options(max_message_bytes),
        # Of one connection. It must not be less than the work lane takes: a chain that comes back over the connection
        # of a peer would wait for itself.
        ("grpc.max_concurrent_streams", num_calls + _CONTROL_STREAMS),
        ("grpc.max_allowed_incoming_connections", _MAX_CONNECTIONS),
        ("grpc.server_handshake_timeout_ms", round(_HANDSHAKE_S * 1e3)),
        # Without probes the window of a message that nobody has asked for yet stays as it is. With them it grows until
        # whole messages lie in memory unseen. Once one is asked for, its window is its size.
        ("grpc.http2.bdp_probe", 0),
        # Clients ping every 30 s while a call runs; gRPC's default would take that for an attack and hang up.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # And a client that is gone is noticed, so that its calls are cancelled.
        ("grpc.keepalive_time_ms", round(_KEEPALIVE_S * 1e3)),
        ("grpc.keepalive_timeout_ms", round(_KEEPALIVE_TIMEOUT_S * 1e3)),
        ("grpc.http2.ping_timeout_ms", round(_KEEPALIVE_TIMEOUT_S * 1e3)),
    ]


def _tensor_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Of a server of VNodes, whose messages are large. Measured: a bare echo of 1 MiB 1.6 ms instead of 2.1.

    The first is memory that nobody has asked for, for each stream; refusals end streams at once, and those that wait
    are few and counted.
    """
    ahead = min(_AHEAD_BYTES, max(64 << 10, max_message_bytes))
    return [("grpc.http2.lookahead_bytes", ahead), ("grpc.http2.max_frame_size", _FRAME_BYTES)]


def _door_options() -> list[tuple[str, int]]:
    """Of a server with nothing but a door: strangers join and go, or their connections would be all there are."""
    return [
        ("grpc.max_connection_idle_ms", round(_DOOR_IDLE_S * 1e3)),
        ("grpc.max_connection_age_ms", round(_DOOR_AGE_S * 1e3)),
        ("grpc.max_connection_age_grace_ms", round(_DOOR_IDLE_S * 1e3)),
    ]
