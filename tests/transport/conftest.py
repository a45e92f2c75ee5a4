"""Real servers on loopback ports that the system chooses; nothing is left running after a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pnode.transport.channels import ChannelPool, ChannelSettings
from pnode.transport.deadline import Deadline
from pnode.transport.server import Server, make_server

Serve = Callable[..., Server]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(10.0)
        assert not thread.is_alive(), f"{thread.name} is left"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, and stops them when the test has ended."""
    servers: list[Server] = []

    def start(**services: Any) -> Server:
        server = make_server(**services)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop(0.0)


@pytest.fixture
def pool() -> Iterator[ChannelPool]:
    settings = ChannelSettings(initial_reconnect_backoff_s=0.05, max_reconnect_backoff_s=0.2)
    with ChannelPool(settings=settings) as channels:
        yield channels


@pytest.fixture
def soon() -> Deadline:
    """A deadline that no healthy call comes near."""
    return Deadline.after(30.0)
