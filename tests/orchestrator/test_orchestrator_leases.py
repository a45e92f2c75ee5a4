"""Leases over the wire: whose a live one is. Over TLS the caller's key says so, on plain loopback the holder's name."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from orchestrator_net import Network, chain
from orchestrator_time import soon
from orchestrator_world import RUNNING

from pnode.errors import ConfigError, LeaseLost
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.storage.local import LocalStore
from pnode.transport.channels import ChannelPool
from pnode.transport.joiner import Joiner
from pnode.transport.remote import RemoteRuns
from pnode.v1 import orchestrator_pb2

pytestmark = pytest.mark.timeout(60)

HOLDER = "the holder's name"


class Drivers:
    """A run on a node over TLS, held by a driver whose key is kept; and other processes that want it."""

    def __init__(self, network: Network, keys: Path) -> None:
        self.network = network
        self.keys = keys
        network.join(1)
        self.first = self.process(keys)
        self.lease = self.submit(self.first)
        network.until_state(RUNNING)

    def process(self, keys: Path | None = None) -> RemoteRuns:
        """Another process, with the key in a folder, or a new one."""
        joiner = Joiner.of_driver(self.network.orchestrator.address, self.network.settings.enrolment, keys=keys)
        self.network.pools.append(ChannelPool(passes=joiner))
        return RemoteRuns(self.network.pools[-1], self.network.as_driver.address)

    def submit(self, process: RemoteRuns, holder: str = HOLDER, nonce: str = "") -> str:
        request = orchestrator_pb2.SubmitRequest(run=chain(), holder=holder, nonce=nonce)
        return process.submit(request, soon()).lease

    def uses(self, process: RemoteRuns, lease: str) -> None:
        """Everything that a lease is good for, the last of which ends the run."""
        status = process.status(orchestrator_pb2.StatusRequest(run="r", lease=lease), soon()).status
        assert all(location.token for location in status.locations)
        process.checkpoint(orchestrator_pb2.CheckpointRequest(run="r", lease=lease, generation=1), soon())
        process.finish(orchestrator_pb2.FinishRequest(run="r", lease=lease), soon())

    def assert_useless(self, process: RemoteRuns, lease: str) -> None:
        asked = (
            lambda: process.status(orchestrator_pb2.StatusRequest(run="r", lease=lease), soon()),
            lambda: process.checkpoint(orchestrator_pb2.CheckpointRequest(run="r", lease=lease, generation=1), soon()),
            lambda: process.finish(orchestrator_pb2.FinishRequest(run="r", lease=lease), soon()),
        )
        for ask in asked:
            with pytest.raises(LeaseLost) as refused:
                ask()
            assert HOLDER not in refused.value.message
        assert self.network.status().state == RUNNING


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Drivers]:
    settings = OrchestratorSettings(port=0, tick_s=0.02, tls=True, enrolment="open sesame", heartbeat_s=1000.0)
    network = Network(LocalStore(tmp_path / "store"), settings)
    yield Drivers(network, tmp_path / "driver")
    network.close()


def test_a_stranger_that_names_the_holder_is_refused_and_changes_nothing(drivers: Drivers) -> None:
    stranger = drivers.process()
    drivers.network.clock.now += 20.0
    for nonce in ("", "another life"):
        with pytest.raises(LeaseLost, match=r"another driver holds this run for another 40\.0 s") as refused:
            drivers.submit(stranger, nonce=nonce)
        assert refused.value.retry_after_s == pytest.approx(40.0)
        assert HOLDER not in refused.value.message
    drivers.assert_useless(stranger, "a guess")
    drivers.uses(drivers.first, drivers.lease)


def test_a_stolen_lease_is_worth_nothing_without_its_key(drivers: Drivers) -> None:
    stranger = drivers.process()
    drivers.assert_useless(stranger, drivers.lease)
    drivers.network.clock.now += 61.0
    drivers.assert_useless(stranger, drivers.lease)
    drivers.uses(drivers.first, drivers.lease)


def test_a_driver_that_comes_back_with_its_key_takes_its_live_lease_over(drivers: Drivers) -> None:
    assert stat.S_IMODE((drivers.keys / "identity.pem").stat().st_mode) == 0o600
    back = drivers.process(drivers.keys)
    lease = drivers.submit(back, nonce="the second life")
    assert lease != drivers.lease
    drivers.assert_useless(drivers.first, drivers.lease)
    drivers.uses(back, lease)


def test_two_drivers_of_one_key_are_told_apart_by_name(drivers: Drivers) -> None:
    """Else two at work, with the key of one machine, would take the run from each other for ever."""
    with pytest.raises(LeaseLost, match="another driver holds this run") as refused:
        drivers.submit(drivers.process(drivers.keys), "another name")
    assert HOLDER not in refused.value.message


def test_after_expiry_another_driver_gets_it_and_it_is_its_own(drivers: Drivers) -> None:
    another = drivers.process()
    drivers.network.clock.now += 59.0
    with pytest.raises(LeaseLost):
        drivers.submit(another)
    drivers.network.clock.now += 2.0
    lease = drivers.submit(another, nonce="theirs")
    for earlier in (drivers.first, drivers.process(drivers.keys)):
        drivers.assert_useless(earlier, lease)
        with pytest.raises(LeaseLost, match="for another 60"):
            drivers.submit(earlier, nonce="mine again")
    drivers.uses(another, lease)


def test_on_plain_loopback_the_name_is_enough(network: Network, lease: str) -> None:
    """All callers are this machine's own there, and a driver that comes back need have no key."""
    with ChannelPool(passes=Joiner.of_driver(network.orchestrator.address)) as pool:
        back = RemoteRuns(pool, network.as_driver.address)
        request = orchestrator_pb2.SubmitRequest(run=chain(), holder="driver", nonce="the second life")
        taken = back.submit(request, soon()).lease
    assert taken != lease
    assert network.status(lease=taken).state == RUNNING
    with pytest.raises(LeaseLost):
        network.status(lease=lease)


def test_a_drivers_key_that_others_could_read_is_refused(tmp_path: Path) -> None:
    Joiner.of_driver("127.0.0.1:50050", keys=tmp_path)
    (tmp_path / "identity.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"driver\.data_dir: .* has mode 0644"):
        Joiner.of_driver("127.0.0.1:50050", keys=tmp_path)
