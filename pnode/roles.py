"""From the checked configuration to each role's own settings, and its start."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pnode.config import Settings
from pnode.errors import BadRequest, ConfigError, StoreUnavailable
from pnode.transport import arenas
from pnode.transport.addresses import OrchestratorAddress, is_loopback, parse_host, parse_orchestrator

# All addresses of a machine: something to bind, and nothing to call.
_ANY = ("0.0.0.0", "::")  # noqa: S104 - refused by it, not bound to it

if TYPE_CHECKING:
    from pnode.node.settings import NodeSettings
    from pnode.orchestrator.settings import OrchestratorSettings
    from pnode.storage.blob import BlobStore
    from pnode.transport.joiner import Joiner
    from pnode.transport.weather import Weather

log = logging.getLogger(__name__)


def node(settings: Settings, reread: Callable[[], Settings]) -> int:
    """role=node: serve until SIGTERM. `reread`: the configuration as it stands by then, for SIGHUP."""
    arenas.keep()
    checked = node_settings(settings)
    from pnode.node.main import run_node  # noqa: PLC0415 - after everything that can be wrong was checked

    with opened_store(settings) as store:
        return run_node(checked, store, lambda: node_settings(reread()))


def orchestrator(settings: Settings) -> int:
    """role=orchestrator: serve until SIGTERM."""
    checked = orchestrator_settings(settings)
    from pnode.node.main import announce  # noqa: PLC0415
    from pnode.orchestrator.orchestrator import Orchestrator  # noqa: PLC0415
    from pnode.storage.probe import probe_conditional_puts  # noqa: PLC0415

    with opened_store(settings) as store, _until_signal() as asked:
        try:
            probe_conditional_puts(store)
        except StoreUnavailable as error:
            raise ConfigError(f"store: {error.message}") from None
        served = Orchestrator(store, checked)
        try:
            served.start()
            announce("orchestrator", served.address)
            asked.wait()
        finally:
            served.close()
    return 0


def devnet(settings: Settings) -> int:
    """role=devnet: a network on this machine, a job on it, a report."""
    arenas.keep()
    from pnode.devnet.devnet import run_devnet  # noqa: PLC0415

    return run_devnet(settings)


def selftest(settings: Settings) -> int:
    """role=selftest: compute what every operator of samebits gives here, and compare it with the golden digests."""
    from samebits.selftest.__main__ import main  # noqa: PLC0415 - brings torch

    return main(["--json", "--threads", str(settings.node.num_threads)])


def node_settings(settings: Settings) -> NodeSettings:
    """What a node is told. Raises ConfigError for what no node can start with."""
    from pnode.node.pressure import Thresholds  # noqa: PLC0415
    from pnode.node.settings import NodeSettings  # noqa: PLC0415

    address = settings.orchestrator.address
    if address is None:
        raise ConfigError(
            "orchestrator.address: is not set; give orchestrator.address=HOST:PORT (ORCHESTRATOR_ADDRESS), "
            "or try everything on this machine with role=devnet"
        )
    host, where = _host("node.host", settings.node.host), _orchestrator_address(address)
    if not where.fingerprint and not (is_loopback(host) and where.address.is_loopback and settings.tls.mode == "auto"):
        raise ConfigError(
            f"orchestrator.address: {where}: TLS needs the fingerprint too, as HOST:PORT#sha256:..., "
            "which the orchestrator prints when it starts with tls.mode=on or beyond loopback"
        )
    if host in _ANY and settings.node.advertise is None:
        raise ConfigError(f"node.advertise: is not set, and nobody can reach a node at node.host={host}")
    return NodeSettings(
        orchestrator_address=str(where),
        enrolment=settings.orchestrator.enrolment,
        any_address=settings.rpc.addresses == "any",
        data_dir=data_dir(settings),
        uuid=settings.node.uuid,
        host=host,
        advertise=None if settings.node.advertise is None else _host("node.advertise", settings.node.advertise),
        port=settings.node.port,
        device=settings.device,
        num_threads=settings.node.num_threads,
        max_vnodes=settings.limits.max_vnodes,
        vnode_memory_bytes=settings.limits.memory,
        disk_bytes=settings.limits.disk,
        pressure=Thresholds(**settings.pressure.model_dump()),
        max_message_bytes=settings.limits.message,
        max_whole_bytes=settings.limits.whole,
        compresses=settings.rpc.compression == "zstd",
        max_queue=settings.limits.queue,
        max_queue_per_client=settings.limits.queue_per_client,
        in_flight_bytes=settings.limits.in_flight,
        receive_s=settings.rpc.receive_s,
        require_layers=settings.sandbox.required,
        drain_s=settings.node.drain_s,
        join_s=settings.node.join_s,
        default_deadline_s=settings.rpc.default_deadline_s,
        max_deadline_s=settings.rpc.max_deadline_s,
        start_s=settings.node.start_s,
        weather=weather(settings, f"node {data_dir(settings).name}", announce_fault),
    )


def orchestrator_settings(settings: Settings) -> OrchestratorSettings:
    """What an orchestrator is told. Raises ConfigError."""
    from pnode.orchestrator.settings import OrchestratorSettings  # noqa: PLC0415

    mine, least_s = settings.orchestrator, max(settings.orchestrator.lease_s, 2 * settings.orchestrator.heartbeat_s)
    if settings.rpc.token_s < least_s:
        raise ConfigError(
            f"rpc.token_s: {settings.rpc.token_s:g} s is too short: tokens are renewed with heartbeats and "
            f"leases, so {least_s:g} s is the least (two of orchestrator.heartbeat_s, and orchestrator.lease_s)"
        )
    host = _host("orchestrator.host", mine.host)
    return OrchestratorSettings(
        host=host,
        port=mine.port,
        member_port=mine.member_port,
        tls=settings.tls.mode == "on" or not is_loopback(host),
        keys=data_dir(settings) / "authority",
        enrolment=mine.enrolment,
        any_address=settings.rpc.addresses == "any",
        certificate_s=settings.tls.certificate_s,
        token_s=settings.rpc.token_s,
        max_message_bytes=settings.limits.message,
        in_flight_bytes=settings.limits.in_flight,
        receive_s=settings.rpc.receive_s,
        default_deadline_s=settings.rpc.default_deadline_s,
        max_deadline_s=settings.rpc.max_deadline_s,
        heartbeat_s=mine.heartbeat_s,
        missed_heartbeats=mine.missed,
        drain_s=mine.drain_s,
        lease_s=mine.lease_s,
        spread=mine.spread,
        pins=mine.pinned,
        min_nodes=mine.min_nodes,
        weather=weather(settings, "orchestrator", announce_fault),
    )


def driver_passes(settings: Settings, orchestrator: str) -> Joiner:
    """A driver's, at an orchestrator as it prints its address. Raises ConfigError for an unusable key."""
    from pnode.transport.joiner import Joiner  # noqa: PLC0415

    kept = settings.driver.data_dir
    keys = None if kept is None else _folder("driver.data_dir", kept)
    return Joiner.of_driver(orchestrator, settings.orchestrator.enrolment, keys=keys)


def weather(settings: Settings, who: str, on_fault: Callable[[str], None]) -> Weather | None:
    """What befalls the calls of a process of the devnet: nothing, unless devnet.faults says otherwise."""
    from pnode.transport.weather import Rates, Weather  # noqa: PLC0415

    rates = settings.devnet.rates
    found = Rates(rates["drop"], rates["duplicate"], rates["delay"], rates["reorder"])
    if found.calm:
        return None
    log.warning("calls of this process meet with faults on purpose: devnet.faults=%s", settings.devnet.faults)
    return Weather(found, f"{settings.devnet.seed} {who}", on_fault)


def announce_fault(kind: str) -> None:
    """One JSON line on stdout for the devnet, which counts them."""
    sys.stdout.write(json.dumps({"event": "fault", "kind": kind}) + "\n")
    sys.stdout.flush()


def data_dir(settings: Settings) -> Path:
    """The node's folder, absolute. Raises ConfigError for a home that does not exist."""
    return _folder("node.data_dir", settings.node.data_dir)


def store_url(settings: Settings) -> str:
    """Where checkpoints are kept: the store that is configured, else a folder below the node's own."""
    store = settings.store
    if store.url is not None:
        return store.url
    if store.s3.bucket is not None:
        return f"s3://{store.s3.bucket}/{store.s3.prefix}".rstrip("/")
    return (data_dir(settings) / "store").as_uri()


@contextmanager
def opened_store(settings: Settings) -> Iterator[BlobStore]:
    """The configured store, closed at the end."""
    from pnode.storage.urls import open_store  # noqa: PLC0415

    store = open_store(
        store_url(settings),
        endpoint_url=settings.store.s3.endpoint,
        region=settings.store.s3.region,
        keep_free_bytes=settings.limits.disk_free,
    )
    try:
        yield store
    finally:
        store.close()


def _folder(key: str, text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{key}: {text}: {error}") from None


def _host(key: str, text: str) -> str:
    try:
        return parse_host(text)
    except BadRequest as error:
        raise ConfigError(f"{key}: {error.message}") from None


def _orchestrator_address(text: str) -> OrchestratorAddress:
    try:
        return parse_orchestrator(text)
    except BadRequest as error:
        raise ConfigError(f"orchestrator.address: {error.message}") from None


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
