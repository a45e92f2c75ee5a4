"""An owner takes memory back from a node at work: SIGHUP, and it refuses, then leaves in good order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pnode.devnet.child import end_all
from pnode.errors import Busy, SpecError
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode, RemoteVNode
from pnode.transport.tensors import metas
from pnode.v1 import node_pb2, spec_pb2, tensor_pb2, vnode_pb2
from pnode.vnode.tensors import TensorBytes
from tests.e2e.e2e_operator import pool_to
from tests.e2e.test_e2e_node import Net, inspect, until

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    net = Net(tmp_path)
    yield net
    end_all(net.children, 20.0)


def request(memory_bytes: int, name: str = "v") -> node_pb2.AllocateRequest:
    """One relu and its loss."""
    operator = spec_pb2.Operator(name="relu", inputs=["x"], output="y", relu=spec_pb2.Relu())
    spec = spec_pb2.VNodeSpec(
        id=name, run="r", profile="samebits-1", operators=[operator], window=1,
        inputs=[tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DTYPE_F32, shape=[4])],
        targets=[tensor_pb2.TensorSpec(name="label", dtype=tensor_pb2.DTYPE_I64)],
        loss=spec_pb2.Loss(cross_entropy=spec_pb2.CrossEntropy(logits="y", target="label")),
        optimizer=spec_pb2.Optimizer(sgd=spec_pb2.Sgd(lr=0.1)),
        limits=spec_pb2.Limits(memory_bytes=memory_bytes, cpu_s=60, wall_s=60, max_rows=4),
        checkpoint=spec_pb2.CheckpointPolicy(keep=1),
    )  # fmt: skip
    return node_pb2.AllocateRequest(spec=spec, fence=vnode_pb2.Fence(run="r", vnode=name, epoch=1, generation=1))


def forward(peer: RemoteVNode) -> None:
    x = TensorBytes("x", tensor_pb2.DTYPE_F32, (1, 4), bytes(16))
    fence = request(MIB).fence
    call = vnode_pb2.ForwardRequest(fence=fence, inputs=metas([x]))
    peer.forward(Parcel(call, [x.payload]), Deadline.after(20))


def test_memory_is_given_and_taken_back(net: Net, tmp_path: Path) -> None:
    # Without an orchestrator's directives: it would release what it has not placed itself.
    orchestrator = net.start("orchestrator", "role=orchestrator", "orchestrator.port=0", "orchestrator.heartbeat_s=1h")
    config = tmp_path / "node.yaml"
    config.write_text("limits:\n  memory: 64MiB\npressure:\n  patience_s: 3s\n")
    joining = f"orchestrator.address={orchestrator.address}"
    node = net.start("node", "--config", str(config), joining, "node.port=0", "device=cpu")
    with pool_to(node, orchestrator) as pool:
        control, peer = RemoteNode(pool, node.address), RemoteVNode(pool, node.address)
        with pytest.raises(SpecError, match=f"{128 * MIB} is over the {64 * MIB}"):
            control.allocate(request(128 * MIB), Deadline.after(10))
        config.write_text("limits:\n  memory: 128MiB\npressure:\n  patience_s: 3s\n")
        node.signal(signal.SIGHUP)
        until(lambda: inspect(pool, node).load.granted_memory_bytes == 128 * MIB, node)
        control.allocate(request(128 * MIB), Deadline.after(10))
        forward(peer)

        config.write_text("limits:\n  memory: 100MiB\npressure:\n  patience_s: 3s\n")
        node.signal(signal.SIGHUP)
        until(lambda: "memory: refuse" in node.tail(20), node)
        with pytest.raises(Busy, match=f"VNodes have {28 * MIB} bytes more than limits.memory grants"):
            forward(peer)
    assert node.wait_end(60.0), node.tail(20)
    assert node.exit_code == 0, node.tail(20)
    assert "draining: memory is short on this machine" in node.tail(20)
