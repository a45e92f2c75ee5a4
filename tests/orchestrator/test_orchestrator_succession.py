"""A node that comes back under another key at its old address is taken in at once, and nobody else gets in by that."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from orchestrator_net import Network, chain
from orchestrator_served import ServedNode
from orchestrator_time import soon
from orchestrator_world import RUNNING

from pnode.errors import Conflict, PNodeError
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.orchestrator.succession import Succession
from pnode.storage.local import LocalStore
from pnode.v1 import node_pb2

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(params=[False, True], ids=["plaintext", "TLS"])
def network(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Network]:
    """Three nodes with a run, whose heartbeats nobody misses: its clock stands."""
    settings = OrchestratorSettings(port=0, tick_s=0.02, tls=request.param, spread=True, probe_s=2.0)
    network = Network(LocalStore(tmp_path), settings)
    network.join(3)
    network.submit(chain())
    network.until_state(RUNNING)
    yield network
    network.close()


def members(network: Network) -> dict[str, str]:
    with network.orchestrator.reading() as core:
        return {member.uuid: member.address for member in core.membership.every()}


def assert_untouched(network: Network, before: dict[str, str]) -> None:
    assert members(network) == before
    assert (network.status().state, network.status().generation) == (RUNNING, 1)


def test_a_node_under_another_key_takes_its_old_place_at_once(network: Network) -> None:
    gone = network.where("v1")
    gone.stop()
    back = ServedNode(network, 9, port=gone.server.port)
    network.nodes.append(back)
    assert back.address == gone.address
    assert members(network)[back.uuid] == gone.address
    assert gone.uuid not in members(network)
    network.until_state(RUNNING, generation=2)
    assert gone.uuid not in {place.node_uuid for place in network.status().locations}
    assert back.beat() == []
    # Were it only cut off and not dead, its own heartbeats would not bring it back to where it is not.
    with pytest.raises(Conflict, match="another node is at"):
        gone.beat()
    assert members(network)[back.uuid] == gone.address


def test_who_is_not_there_evicts_nobody(network: Network) -> None:
    """It says that it is where a live member is; that one answers, and not as it."""
    victim, before = network.where("v0"), members(network)
    evil = ServedNode(network, 9)
    before |= {evil.uuid: evil.address}
    own, evil.address = evil.address, victim.address
    for _ in range(3):
        with pytest.raises(Conflict, match="another node is at"):
            evil.register()
        assert_untouched(network, before)
    evil.address = own
    assert (evil.beat(), victim.beat()) == ([], [])
    evil.stop()


def test_a_dead_members_address_is_nobodys_who_does_not_answer_there(network: Network) -> None:
    dead, before = network.where("v0"), members(network)
    dead.stop()
    evil = ServedNode(network, 9)
    before |= {evil.uuid: evil.address}
    evil.address = dead.address
    with pytest.raises(Conflict):
        evil.register()
    with silent(dead.server.port), pytest.raises(Conflict):
        evil.register()
    assert_untouched(network, before)
    evil.stop()


def test_who_passes_the_calls_on_is_not_there_either(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another member answers at the address, and says that it is the one who is asked for."""
    dead = network.where("v0")
    dead.stop()
    other = ServedNode(network, 8, port=dead.server.port)
    network.nodes.append(other)
    evil = ServedNode(network, 9)
    lie = node_pb2.InspectReply(node_uuid=evil.uuid)
    monkeypatch.setattr(ServedNode, "inspect", lambda *_: lie)
    before = members(network)
    evil.address = other.address
    with pytest.raises(Conflict):
        evil.register()
    assert members(network) == before
    evil.stop()


def test_a_successor_of_an_earlier_life_is_none(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the new one was asked, the member registered anew: the proof is not about that life of it."""
    victim, before = network.where("v0"), members(network)
    evil = ServedNode(network, 9)
    before |= {evil.uuid: evil.address}

    def overtaken(*_: object) -> bool:
        victim.register()
        return True

    monkeypatch.setattr(Succession, "proven", overtaken)
    own, evil.address = evil.address, victim.address
    with pytest.raises(Conflict):
        evil.register()
    monkeypatch.undo()
    assert members(network) == before
    evil.address = own
    assert evil.beat() == []
    evil.stop()


def test_so_many_are_asked_at_once_and_no_more(network: Network) -> None:
    gone = network.where("v2")
    gone.stop()
    asked = network.orchestrator.nodes._succession
    with asked._places, asked._places, pytest.raises(Conflict):
        ServedNode(network, 9, port=gone.server.port)
    assert gone.uuid in members(network)


def test_whoever_cannot_be_asked_proves_nothing(network: Network) -> None:
    asked = network.orchestrator.nodes._succession
    node = network.nodes[0]
    assert asked.proven(node.address, node.uuid, soon())
    for other in (network.nodes[1].uuid, "5f0c0f6e-34e0-4d8e-9f5c-5f6e34e04d8e"):
        assert not asked.proven(node.address, other, soon())
    node.stop()
    assert not asked.proven(node.address, node.uuid, soon())


@contextmanager
def silent(port: int) -> Iterator[None]:
    """Somebody listens there and says nothing."""
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise PNodeError(f"port {port} is not free again") from error
    with listening:
        yield
