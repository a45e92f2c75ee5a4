"""Forward through a PNode against what peers ship for the same: a Ray actor's call, hivemind's empty expert.

Each peer runs in its own environment, with its client and its server in processes of their own; rounds of its calls and
of ours come by turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.rows import Row
from benchmarks.rpc.echo import FEATURES, FENCE, ROW_BYTES, operator, size_name
from benchmarks.rpc.foreign import absent, foreign, installed
from benchmarks.rpc.peer import peer
from benchmarks.rpc.registry import group
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode, RemoteVNode
from pnode.transport.tensors import metas
from pnode.v1 import node_pb2, tensor_pb2, vnode_pb2
from pnode.vnode.tensors import TensorBytes

KIB, MIB = 1 << 10, 1 << 20
# Of each round; the first round of each side warms up.
_ROUNDS, _CALLS = 10, 30

Times = Callable[[int], list[float]]


@group("ray")
def ray(quick: bool) -> Iterator[Row]:
    """An actor that gives back its array, called with a new one each time."""
    yield from _against("a Ray actor call", "ray_actor.py", ((MIB, 2.0, 3.0),), quick)


@group("hivemind")
def hivemind(quick: bool) -> Iterator[Row]:
    """The expert `nop`, by RemoteExpert, without gradients."""
    sizes = ((2 * KIB, 3.0, 6.0), (MIB, 8.0, 12.0))
    yield from _against("hivemind's empty expert", "hivemind_empty.py", sizes, quick)


def _against(name: str, script: str, sizes: tuple[tuple[int, float, float], ...], quick: bool) -> Iterator[Row]:
    """For each size: both medians, and how many times faster ours is, beside what to reach and the aim."""
    if not installed():
        yield absent(name)
        return
    rounds = 2 if quick else _ROUNDS
    with peer() as served, ChannelPool() as pool:
        spec = operator(max(num_bytes for num_bytes, _, _ in sizes) // ROW_BYTES)
        RemoteNode(pool, served.node).allocate(node_pb2.AllocateRequest(spec=spec, fence=FENCE), Deadline.after(60))
        for num_bytes, least, aim in sizes:
            with foreign(script, num_bytes) as theirs:
                theirs.line("ready")
                sides = (theirs.times, _forwards(RemoteVNode(pool, served.node), num_bytes))
                peers, ours = _medians(sides, rounds)
            size = size_name(num_bytes)
            yield Row(f"{name}, {size}", 1e3 * peers, "ms")
            yield Row(f"forward beside it, {size}", 1e3 * ours, "ms")
            yield Row(f"forward is faster than {name}, {size}", peers / ours, "x", least=least, aim=aim)


def _forwards(vnode: RemoteVNode, num_bytes: int) -> Times:
    # Numbers as a model has them: random bits would have NaNs, which the worker makes canonical one by one.
    content = np.random.default_rng(0).standard_normal(num_bytes // 4, np.float32).tobytes()
    tensor = TensorBytes("x", tensor_pb2.DTYPE_F32, (num_bytes // ROW_BYTES, FEATURES), content)
    request = Parcel(vnode_pb2.ForwardRequest(fence=FENCE, inputs=metas([tensor])), [content])

    def times(num: int) -> list[float]:
        seconds = []
        for _ in range(num):
            started = time.perf_counter()
            vnode.forward(request, Deadline.after(60))
            seconds.append(time.perf_counter() - started)
        return seconds

    return times


def _medians(sides: tuple[Times, Times], rounds: int) -> tuple[float, float]:
    """Of both sides' calls, a round of each by turns."""
    kept: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 1):
        for side, times in zip(sides, kept, strict=True):
            found = side(_CALLS)
            if index:
                times += found
    return statistics.median(kept[0]), statistics.median(kept[1])
