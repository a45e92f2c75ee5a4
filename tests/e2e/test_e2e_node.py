"""Real processes: a node joins, serves, outlives its orchestrator, and leaves in good order on SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from pnode.devnet.child import PNODE, Child, end_all
from pnode.errors import Unauthenticated, UnknownVNode
from pnode.security.identity import Identity
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode, RemoteVNode
from pnode.v1 import node_pb2, vnode_pb2
from tests.e2e.e2e_operator import pool_to

# A cold kernel cache is compiled by the first node that starts.
START_S = 240.0

pytestmark = pytest.mark.timeout(300)


class Net:
    """Starts PNode's processes in a folder, and ends what is left of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.children: list[Child] = []

    def start(self, name: str, *arguments: str) -> Child:
        common = ("log.level=info", f"store.url=file://{self._folder}/store", f"node.data_dir={self._folder}/{name}")
        child = Child(name, [*PNODE, *common, *arguments], self._folder / f"{name}.log")
        self.children.append(child)
        child.wait_serving(START_S)
        return child

    def orchestrator(self, name: str, port: int = 0) -> Child:
        return self.start(name, "role=orchestrator", f"orchestrator.port={port}", "orchestrator.heartbeat_s=200ms")

    def node(self, name: str, orchestrator: Child) -> Child:
        return self.start(name, f"orchestrator.address={orchestrator.address}", "node.port=0", "device=cpu")


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    net = Net(tmp_path)
    yield net
    end_all(net.children, 20.0)


def until(holds: Callable[[], bool], child: Child, deadline_s: float = 30.0) -> None:
    """Wait until something holds, looking again whenever a second has passed or the child has ended."""
    deadline = Deadline.after(deadline_s)
    while not holds():
        assert not deadline.passed, child.tail(20)
        assert not child.wait_end(0.05), child.tail(20)


def inspect(pool: ChannelPool, node: Child) -> node_pb2.InspectReply:
    return RemoteNode(pool, node.address).inspect(node_pb2.InspectRequest(), Deadline.after(10))


def health(node: Child, service: str) -> int:
    with grpc.insecure_channel(node.address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return int(check(health_pb2.HealthCheckRequest(service=service), timeout=10).status)


def test_a_node_joins_serves_and_leaves_with_exit_0(net: Net) -> None:
    orchestrator = net.orchestrator("orchestrator")
    node = net.node("node", orchestrator)
    with pool_to(node, orchestrator) as pool:
        _joins_serves_and_leaves(node, pool)


def _joins_serves_and_leaves(node: Child, pool: ChannelPool) -> None:
    until(lambda: inspect(pool, node).orchestrator_reachable, node)
    about = inspect(pool, node)
    assert about.node_uuid == Identity.kept(node.log.parent / "node").uuid
    assert "samebits-1" in about.capabilities.numerics_classes
    assert about.capabilities.versions["torch"]
    assert health(node, "") == health_pb2.HealthCheckResponse.SERVING
    with grpc.insecure_channel(node.address) as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {"pnode.v1.VNodes", "pnode.v1.PNode", "grpc.health.v1.Health"} <= services
    with pytest.raises(UnknownVNode):
        RemoteVNode(pool, node.address).describe(vnode_pb2.DescribeRequest(run="r", vnode="v"), Deadline.after(10))
    with ChannelPool() as strangers, pytest.raises(Unauthenticated, match="Inspect needs a token"):
        inspect(strangers, node)
    assert inspect(pool, node).counters["refused.inspect.UNAUTHENTICATED"] >= 1
    assert "UNAUTHENTICATED: 'Inspect needs a token" in node.tail(40)

    node.signal(signal.SIGTERM)
    assert node.wait_end(30.0), node.tail(20)
    assert node.exit_code == 0, node.tail(20)
    assert "unregistered: SIGTERM" in node.tail(20)


def test_a_node_outlives_its_orchestrator_and_finds_the_next(net: Net) -> None:
    first = net.orchestrator("first")
    node = net.node("node", first)
    with pool_to(node, first) as pool:
        _outlives_and_finds_the_next(net, first, node, pool)


def _outlives_and_finds_the_next(net: Net, first: Child, node: Child, pool: ChannelPool) -> None:
    until(lambda: inspect(pool, node).orchestrator_reachable, node)
    port = int(first.address.rpartition(":")[2])
    first.kill()
    until(lambda: not inspect(pool, node).orchestrator_reachable, node)
    until(lambda: health(node, "orchestrator") == health_pb2.HealthCheckResponse.NOT_SERVING, node)
    assert health(node, "") == health_pb2.HealthCheckResponse.SERVING, "it serves on"
    assert "does not answer; serving on" in node.tail(20)

    # Another one, that knows nothing of the first: the node joins it by its key, and heeds its tokens alone.
    second = net.orchestrator("second", port)
    with pool_to(node, second) as others:
        _heeds_the_next(node, pool, others)


def _heeds_the_next(node: Child, before: ChannelPool, pool: ChannelPool) -> None:
    until(lambda: health(node, "orchestrator") == health_pb2.HealthCheckResponse.SERVING, node)
    with pytest.raises(Unauthenticated, match="not signed by this network's orchestrator"):
        inspect(before, node)
    until(lambda: inspect(pool, node).orchestrator_reachable, node)
    until(lambda: health(node, "orchestrator") == health_pb2.HealthCheckResponse.SERVING, node)
    assert "answers again" in node.tail(20)


def run_node(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *PNODE, f"node.data_dir={folder}", f"store.url=file://{folder}/store", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a node which cannot start ends with."""
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()[-1]


def test_a_taken_port_is_one_line_and_exit_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_node(tmp_path, "orchestrator.address=127.0.0.1:9", f"node.port={port}")
    assert refusal(done) == f"pnode: port {port} is in use"
    assert len(done.stderr.splitlines()) == 1


def test_an_orchestrator_that_never_answers_is_one_line_and_exit_2(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        done = run_node(tmp_path, f"orchestrator.address={address}", "node.port=0", "node.join_s=1s", "device=cpu")
    assert refusal(done).startswith(f"pnode: orchestrator.address: {address} could not be joined in 1 s")
    assert json.loads(done.stdout)["event"] == "serving"


def own_address() -> str | None:
    """An address of this machine that others could reach."""
    every = [address for found in psutil.net_if_addrs().values() for address in found]
    plain = [IPv4Address(address.address) for address in every if address.family == socket.AF_INET]
    return next((str(found) for found in plain if not (found.is_loopback or found.is_link_local)), None)


def test_beyond_loopback_everything_is_tls_and_nobody_names_a_loopback_address(net: Net, tmp_path: Path) -> None:
    here = own_address()
    if here is None:
        pytest.skip("this machine has no address beyond loopback")
    ports = ("orchestrator.port=0", "orchestrator.member_port=0")
    orchestrator = net.start("orchestrator", "role=orchestrator", f"orchestrator.host={here}", *ports)
    assert orchestrator.address.startswith(f"{here}:")
    assert "#sha256:" in orchestrator.address
    joining = f"orchestrator.address={orchestrator.address}"
    node = net.start("node", joining, f"node.host={here}", "node.port=0", "device=cpu")
    until(lambda: f"joined from {node.address}" in orchestrator.tail(20), node)
    refused = refusal(run_node(tmp_path / "other", joining, "node.port=0", "device=cpu"))
    assert "does not let this node join: 127.0.0.1:" in refused
    assert f"is a loopback address, and came from another machine: {here}" in refused
