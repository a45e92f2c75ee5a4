"""What TLS costs: the same Forward to two PNodes over loopback, one of a network with TLS and one without, by turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.rows import Row
from benchmarks.rpc.echo import FEATURES, ROW_BYTES, operator, size_name
from benchmarks.rpc.network import Network, network
from benchmarks.rpc.registry import group
from benchmarks.rpc.turns import medians
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.tensors import metas
from pnode.v1 import spec_pb2, tensor_pb2, vnode_pb2
from pnode.vnode.tensors import TensorBytes

NUM_BYTES = 1 << 20
# Rounds of both calls.
_NUM = 300


@group("tls")
def tls(quick: bool) -> Iterator[Row]:
    """Medians of both, and their ratio."""
    with network(1) as plain, network(1, "tls.mode=on") as closed:
        off, on = medians([_forward(net) for net in (plain, closed)], _NUM // 10 if quick else _NUM)
    size = size_name(NUM_BYTES)
    yield Row(f"forward of {size}, without TLS", 1e3 * off, "ms")
    yield Row(f"forward of {size}, with TLS", 1e3 * on, "ms")
    yield Row(f"forward of {size}, TLS on against off", on / off, "x", most=1.5, aim=1.2)


def _forward(net: Network) -> Callable[[], None]:
    """A call of the echo's VNode, which a run that serves by itself must give a loss."""
    spec = operator(NUM_BYTES // ROW_BYTES)
    spec.downstream = ""
    spec.targets.add(name="label", dtype=tensor_pb2.DTYPE_I64)
    spec.loss.CopyFrom(spec_pb2.Loss(cross_entropy=spec_pb2.CrossEntropy(logits=spec.outputs[0], target="label")))
    (location,) = net.serve([spec]).locations
    vnode = net.vnodes(location.address)
    content = np.random.default_rng(0).standard_normal(NUM_BYTES // 4, np.float32).tobytes()
    tensor = TensorBytes("x", tensor_pb2.DTYPE_F32, (NUM_BYTES // ROW_BYTES, FEATURES), content)
    request = Parcel(vnode_pb2.ForwardRequest(fence=location.fence, inputs=metas([tensor])), [content])

    def call() -> None:
        (payload,) = vnode.forward(request, Deadline.after(60)).payloads
        assert len(payload) == NUM_BYTES

    return call
