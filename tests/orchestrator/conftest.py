"""Worlds for the orchestrator's tests: one of fakes for the core, one of real servers for the whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from orchestrator_doors import SECRET
from orchestrator_net import Network
from orchestrator_world import RUNNING, World

from pnode.orchestrator.orchestrator import Orchestrator
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.storage.local import LocalStore


@pytest.fixture
def world() -> World:
    """Three nodes, a run of three VNodes, running."""
    world = World()
    for index in (1, 2, 3):
        world.join(index)
    world.submit()
    world.settle()
    assert world.status().state == RUNNING
    return world


@pytest.fixture
def network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Network]:
    before = set(threading.enumerate())
    network = Network(LocalStore(tmp_path))
    yield network
    network.close()
    ours = [
        thread for thread in set(threading.enumerate()) - before if thread.name.startswith(("orch", "probe", "tick"))
    ]
    assert ours == []


@pytest.fixture
def lease(network: Network) -> str:
    """The lease of a run that runs on three nodes."""
    network.join(3)
    lease = network.submit()
    network.until_state(RUNNING)
    return lease


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Orchestrator]:
    """An orchestrator with TLS and a secret."""
    settings = OrchestratorSettings(port=0, tls=True, keys=tmp_path / "keys", enrolment=SECRET)
    orchestrator = Orchestrator(LocalStore(tmp_path / "store"), settings)
    orchestrator.start()
    yield orchestrator
    orchestrator.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Orchestrator]:
    """One without, which anybody on this machine may join."""
    orchestrator = Orchestrator(LocalStore(tmp_path / "store"), OrchestratorSettings(port=0))
    orchestrator.start()
    yield orchestrator
    orchestrator.close()
