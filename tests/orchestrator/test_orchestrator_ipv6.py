"""A whole network over IPv6: door, members, nodes and a driver, in plaintext on loopback and by TLS."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from orchestrator_net import Network, chain
from orchestrator_world import RUNNING

from pnode.orchestrator.settings import OrchestratorSettings
from pnode.storage.local import LocalStore

pytestmark = pytest.mark.timeout(60)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture(params=[False, True], ids=["plaintext", "TLS"])
def network(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Network]:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    settings = OrchestratorSettings(host="::1", port=0, tick_s=0.02, tls=request.param, spread=True)
    network = Network(LocalStore(tmp_path), settings)
    yield network
    network.close()


def test_a_run_is_placed_checkpointed_and_recovered_over_ipv6(network: Network) -> None:
    assert network.orchestrator.address.startswith(f"[::1]:{network.orchestrator.port}")
    network.join(3)
    lease = network.submit(chain())
    network.until_state(RUNNING)
    assert all(place.address.startswith("[::1]:") for place in network.status(lease=lease).locations)
    network.train_to(2)
    assert network.checkpoint(lease, 2).manifest_sha256
    network.where("v0").stop()
    network.report("v0", "PEER_UNAVAILABLE")
    network.until_state(RUNNING, generation=2)
    status = network.status(lease=lease)
    assert (status.generation, status.version) == (2, 2)
