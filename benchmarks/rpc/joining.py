"""What joining brings: clients of one VNode, each with one row at a time, with and without room for several rows.

Both VNodes are hivemind's expert; one has `limits.max_rows` of a single call, so that its calls cannot be joined.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier

import numpy as np

from benchmarks.rows import Row
from benchmarks.rpc.peer import peer
from benchmarks.rpc.registry import group
from benchmarks.rpc.throughput import FEATURES, ffn
from pnode.client.batch import from_array
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode, RemoteVNode
from pnode.transport.tensors import metas
from pnode.v1 import node_pb2, vnode_pb2

CLIENTS = 8
_CALLS, _ROUNDS = 60, 5
_CALL_S = 60.0


@group("joining")
def joining(quick: bool) -> Iterator[Row]:
    """Calls a second of eight clients, alone and joined, and how many of them were."""
    calls, rounds = (10, 1) if quick else (_CALLS, _ROUNDS)
    spawning = multiprocessing.get_context("spawn")
    with peer() as served, ChannelPool() as pool:
        node = RemoteNode(pool, served.node)
        fences = [_allocated(node, name, rows) for name, rows in (("alone", 1), ("joined", CLIENTS))]
        start = spawning.Barrier(CLIENTS + 1, timeout=300)
        arguments = (served.node, [fence.SerializeToString() for fence in fences], calls, rounds, start)
        clients = [spawning.Process(target=_client, args=arguments, daemon=True) for _ in range(CLIENTS)]
        for each in clients:
            each.start()
        alone, joined = _rates(start, calls, rounds)
        for each in clients:
            each.join(10)
        share = node.inspect(node_pb2.InspectRequest(), Deadline.after(_CALL_S)).counters["forward.joined"]
    yield Row("forward of one row, 8 clients, one command each", alone, "/s")
    yield Row("forward of one row, 8 clients, joined", joined, "/s")
    yield Row("calls that were joined, of 100", 100 * share / (CLIENTS * (calls * rounds + 1)), "")
    yield Row("joined against one command each", joined / alone, "x", least=1.0)


def _allocated(node: RemoteNode, name: str, rows: int) -> vnode_pb2.Fence:
    spec = ffn(name, "samebits-1")
    spec.limits.max_rows = rows
    fence = vnode_pb2.Fence(run=name, vnode=name, generation=1, epoch=1)
    node.allocate(node_pb2.AllocateRequest(spec=spec, fence=fence), Deadline.after(_CALL_S))
    return fence


def _rates(start: Barrier, calls: int, rounds: int) -> tuple[float, float]:
    """Calls a second at both VNodes, by turns; medians of the rounds."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for found in seconds:
            start.wait()
            began = time.perf_counter()
            start.wait()
            found.append(time.perf_counter() - began)
    alone, joined = (CLIENTS * calls / statistics.median(found) for found in seconds)
    return alone, joined


def _client(address: str, fences: list[bytes], calls: int, rounds: int, start: Barrier) -> None:
    x = from_array("x", np.random.default_rng(0).standard_normal((1, FEATURES), np.float32))
    heads = [vnode_pb2.ForwardRequest(fence=vnode_pb2.Fence.FromString(fence), inputs=metas([x])) for fence in fences]
    with ChannelPool() as pool:
        vnode = RemoteVNode(pool, address)
        for head in heads:
            vnode.forward(Parcel(head, [x.payload]), Deadline.after(_CALL_S))
        for _ in range(rounds):
            for head in heads:
                start.wait()
                for _ in range(calls):
                    vnode.forward(Parcel(head, [x.payload]), Deadline.after(_CALL_S))
                start.wait()
