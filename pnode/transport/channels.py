"""Channels to peers: one per place, reconnecting with backoff, failing fast while a peer is gone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Self

import grpc

from pnode.errors import ConfigError, PeerUnavailable
from pnode.transport.addresses import Address
from pnode.transport.credentials import channel_credentials
from pnode.transport.passes import OpenPasses, Passes, Place, check_private
from pnode.transport.weather import Weather

# The largest message, unless configured: 64 MiB.
MAX_MESSAGE_BYTES = 64 * 2**20
# The largest that goes in pieces, unless configured: 256 MiB.
MAX_WHOLE_BYTES = 256 * 2**20


def size_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """The gRPC arguments for the largest message, either way. Raises ConfigError outside what protobuf can hold."""
    if not 1 <= max_message_bytes < 2**31:
        raise ConfigError(f"max_message_bytes {max_message_bytes} does not lie between 1 and {2**31 - 1}")
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
    ]


@dataclass(frozen=True)
class ChannelSettings:
    """How connections are made and watched. All times in seconds."""

    # After a failed connection the next one waits this long, doubling with gRPC's jitter up to the maximum.
    initial_reconnect_backoff_s: float = 0.1
    max_reconnect_backoff_s: float = 5.0
    # A connection that is not up by then has failed: a suspended peer still accepts, but never speaks.
    connect_timeout_s: float = 10.0
    # A ping during calls tells a peer that works for long from one that is gone. Servers of ours allow such pings.
    keepalive_s: float = 30.0
    keepalive_timeout_s: float = 20.0
    max_channels: int = 256

    def options(self, max_message_bytes: int) -> list[tuple[str, int]]:
        """The gRPC channel arguments."""
        return [
            *size_options(max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", round(self.initial_reconnect_backoff_s * 1e3)),
            ("grpc.max_reconnect_backoff_ms", round(self.max_reconnect_backoff_s * 1e3)),
            # Whatever its name says, gRPC uses it as the time limit of one connection attempt.
            ("grpc.min_reconnect_backoff_ms", round(self.connect_timeout_s * 1e3)),
            ("grpc.keepalive_time_ms", round(self.keepalive_s * 1e3)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout_s * 1e3)),
            # gRPC sends a keepalive ping that had to wait as a common one, whose own limit is a minute.
            ("grpc.http2.ping_timeout_ms", round(self.keepalive_timeout_s * 1e3)),
            ("grpc.http2.max_pings_without_data", 0),
            # Retries are the caller's, who knows what is idempotent; peers are addresses, so nothing is looked up,
            # and calls never leave by a proxy that the environment happens to name.
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.enable_http_proxy", 0),
            # Each pool has connections of its own: closing one ends them, and tests cannot share backoff states.
            ("grpc.use_local_subchannel_pool", 1),
        ]


class Line:
    """A channel of a pool, and the number of calls that use it: each holds it for as long as the call lasts.

    What makes the calls of a method is made once; methods are few.
    """

    def __init__(self, channel: grpc.Channel, lock: threading.Lock) -> None:
        self.channel = channel
        self.num_calls = 0
        self._lock = lock
        self._unary: dict[str, grpc.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    def unary(self, path: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
        """What makes calls with one message either way."""
        found = self._unary.get(path)
        if found is None:
            found = self._unary[path] = self.channel.unary_unary(path)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.num_calls -= 1


class ChannelPool:
    """One channel per place, made on first use. Thread-safe. The idle one used longest ago goes first.

    A place is an address, the certificate shown there and the name expected there: a renewed certificate has a channel
    of its own, and the old one goes when it is idle.

    passes: where this process may call, and what its calls carry.
    """

    def __init__(
        self,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_whole_bytes: int = MAX_WHOLE_BYTES,
        compresses: bool = False,
        settings: ChannelSettings | None = None,
        weather: Weather | None = None,
        passes: Passes | None = None,
    ) -> None:
        self.max_message_bytes = max_message_bytes
        self.max_whole_bytes = max_whole_bytes
        self.compresses = compresses
        self.weather = weather
        self.passes: Passes = passes or OpenPasses()
        self._settings = settings or ChannelSettings()
        self._options = self._settings.options(max_message_bytes)
        self._lock = threading.Lock()
        self._pooled: OrderedDict[Place, Line] = OrderedDict()
        self._closed = False

    def lease(self, address: Address) -> Line:
        """The channel to an address, for one call: it is kept open until the line is left."""
        return self._take(check_private(self.passes.place(address)))

    def close(self) -> None:
        """Close every channel; calls in flight end with PeerUnavailable. Safe to call twice."""
        with self._lock:
            self._closed = True
            pooled = list(self._pooled.values())
            self._pooled.clear()
        for each in pooled:
            each.channel.close()

    def __enter__(self) -> ChannelPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._lock:
            return len(self._pooled)

    def _take(self, place: Place) -> Line:
        with self._lock:
            if self._closed:
                raise PeerUnavailable(f"{place.address}: the channels of this process are closed")
            pooled = self._pooled.get(place)
            if pooled is None:
                pooled = Line(self._made(place), self._lock)
                self._pooled[place] = pooled
            self._pooled.move_to_end(place)
            pooled.num_calls += 1
            idle = [*self._outdated(place), *self._surplus()] if len(self._pooled) > 1 else ()
        for each in idle:
            each.channel.close()
        return pooled

    def _made(self, place: Place) -> grpc.Channel:
        if place.tls is None:
            return grpc.insecure_channel(place.address.target, options=self._options)
        options = [*self._options, ("grpc.ssl_target_name_override", place.name)]
        return grpc.secure_channel(place.address.target, channel_credentials(place.tls), options=options)

    def _outdated(self, place: Place) -> list[Line]:
        """Take out the idle channels to the same address that show or expect something else by now."""
        old = [
            other
            for other, pooled in self._pooled.items()
            if other.address == place.address and other != place and not pooled.num_calls
        ]
        return [self._pooled.pop(other) for other in old]

    def _surplus(self) -> list[Line]:
        """Take out the idle channels beyond the maximum, oldest first."""
        num_surplus = len(self._pooled) - self._settings.max_channels
        if num_surplus <= 0:
            return []
        oldest = [place for place, pooled in self._pooled.items() if not pooled.num_calls]
        return [self._pooled.pop(place) for place in oldest[:num_surplus]]
