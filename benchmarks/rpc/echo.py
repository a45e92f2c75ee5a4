"""Forward through front, shared memory and sandboxed worker, against a bare gRPC echo of the same bytes.

One client, loopback, both servers in one other process, the two calls by turns.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from benchmarks.rows import Row
from benchmarks.rpc.peer import ECHO, UNBOUNDED, peer
from benchmarks.rpc.registry import group
from benchmarks.rpc.turns import medians
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode, RemoteVNode
from pnode.transport.tensors import metas
from pnode.v1 import node_pb2, spec_pb2, tensor_pb2, vnode_pb2
from pnode.vnode.tensors import TensorBytes

FEATURES = 512
ROW_BYTES = 4 * FEATURES
FENCE = vnode_pb2.Fence(run="bench", vnode="v", generation=1, epoch=1)
# Bytes, the ratio to reach, rounds.
SIZES = ((2 << 10, 1.7, 1000), (1 << 20, 1.5, 300), (16 << 20, 1.4, 40))
AIM = 1.3


def operator(max_rows: int) -> spec_pb2.VNodeSpec:
    """A VNode that passes on; it has no loss, so a downstream VNode is named."""
    return spec_pb2.VNodeSpec(
        id=FENCE.vnode,
        run=FENCE.run,
        profile="samebits-1",
        inputs=[tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DTYPE_F32, shape=[FEATURES])],
        operators=[spec_pb2.Operator(name="same", inputs=["x"], output="y", identity=spec_pb2.Identity())],
        outputs=["y"],
        downstream="w",
        optimizer=spec_pb2.Optimizer(sgd=spec_pb2.Sgd(lr=0.1)),
        limits=spec_pb2.Limits(memory_bytes=512 << 20, cpu_s=60, wall_s=60, max_rows=max_rows),
        checkpoint=spec_pb2.CheckpointPolicy(keep=1),
        window=1,
    )


def size_name(num_bytes: int) -> str:
    """As 2 KiB or 16 MiB."""
    return f"{num_bytes >> 20} MiB" if num_bytes >= 1 << 20 else f"{num_bytes >> 10} KiB"


@group("echo")
def echo(quick: bool) -> Iterator[Row]:
    """Medians of both calls and their ratio, for each size."""
    sizes = SIZES[:2] if quick else SIZES
    with peer() as served, ChannelPool() as pool:
        spec = operator(max(num_bytes for num_bytes, _, _ in sizes) // ROW_BYTES)
        RemoteNode(pool, served.node).allocate(node_pb2.AllocateRequest(spec=spec, fence=FENCE), Deadline.after(60))
        vnode = RemoteVNode(pool, served.node)
        with grpc.insecure_channel(served.echo, options=UNBOUNDED) as channel:
            send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(ECHO)
            for num_bytes, most, num in sizes:
                yield from _rows(vnode, send, num_bytes, most, num // 10 if quick else num)


def _rows(
    vnode: RemoteVNode, send: grpc.UnaryUnaryMultiCallable[bytes, bytes], num_bytes: int, most: float, num: int
) -> Iterator[Row]:
    content = bytes(num_bytes)
    tensor = TensorBytes("x", tensor_pb2.DTYPE_F32, (num_bytes // ROW_BYTES, FEATURES), content)
    request = Parcel(vnode_pb2.ForwardRequest(fence=FENCE, inputs=metas([tensor])), [content])

    def forward() -> None:
        (payload,) = vnode.forward(request, Deadline.after(60)).payloads
        assert len(payload) == num_bytes

    bare, ours = medians((lambda: send(content, timeout=60), forward), num)
    size = size_name(num_bytes)
    yield Row(f"bare echo of {size}", 1e3 * bare, "ms")
    yield Row(f"forward of {size}", 1e3 * ours, "ms")
    yield Row(f"forward of {size} against the bare echo", ours / bare, "x", most=most, aim=AIM)
