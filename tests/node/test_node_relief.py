"""A real node whose machine runs short of memory ends its newest VNode, and the older one serves on."""

from __future__ import annotations

from pathlib import Path

import pytest
from node_world import LIMITS, MODEL, OPTIMIZER

from pnode.client.cut import Plan, cut
from pnode.errors import Busy, WorkerLost
from pnode.node.node import Node
from pnode.node.pressure import Step
from pnode.node.settings import NodeSettings
from pnode.storage.local import LocalStore
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.guards import OpenGuard
from pnode.transport.remote import RemoteNode, RemoteVNode
from pnode.transport.tensors import metas
from pnode.v1 import node_pb2, tensor_pb2, vnode_pb2
from pnode.vnode.tensors import TensorBytes

RUNS = ("older", "newer")


def fence(run: str) -> vnode_pb2.Fence:
    return vnode_pb2.Fence(run=run, vnode="stage1", generation=1, epoch=1)


def forward(peer: RemoteVNode, run: str) -> vnode_pb2.ForwardReply:
    x = TensorBytes("tokens", tensor_pb2.DTYPE_F32, (2, 3, 4), bytes(96))
    request = vnode_pb2.ForwardRequest(fence=fence(run), inputs=metas([x]))
    return peer.forward(Parcel(request, [x.payload]), Deadline.after(60)).head


@pytest.mark.timeout(300)
def test_the_newest_goes_first_and_says_why(tmp_path: Path) -> None:
    settings = NodeSettings(orchestrator_address="127.0.0.1:9", data_dir=tmp_path, port=0, vnode_memory_bytes=1 << 30)
    node = Node(settings, LocalStore(tmp_path / "store"), guard=OpenGuard())
    try:
        node.start()
        with ChannelPool() as pool:
            control, peer = RemoteNode(pool, node.address), RemoteVNode(pool, node.address)
            for run in RUNS:
                spec = cut(MODEL, Plan(run=run, seed=7, optimizer=OPTIMIZER, limits=LIMITS))[0]
                control.allocate(node_pb2.AllocateRequest(spec=spec, fence=fence(run)), Deadline.after(10))
                forward(peer, run)
            assert 0 < node.load().granted_memory_bytes <= 1 << 30
            used = [vnode.used_bytes for vnode in node._allocations.every()]
            assert all(0 < each < LIMITS.memory_bytes for each in used)

            node._relieve(Step.REFUSE, "a test")
            with pytest.raises(Busy, match="memory is short on this machine: a test"):
                forward(peer, "older")
            node._relieve(Step.KILL, "a test")
            node._relieve(Step.NONE, "")
            with pytest.raises(WorkerLost, match="memory is short on this machine: a test"):
                forward(peer, "newer")
            assert forward(peer, "older").version == 0
    finally:
        node.close()
