"""hivemind's own throughput benchmark, at both: 16 FFN experts of hidden size 1024, 2048 rows in flight, 16 clients.

The expert is hivemind's `ffn`: layer_norm(x + linear(gelu(linear(x)))), 1024 to 4096 and back, with Adam; theirs takes
gelu's approximation by tanh, ours its erf form. Here it is one VNode of one PNode, trained against a loss of its own,
for a VNode's gradients come from below or from its loss. Clients are processes. `forward`: each calls a VNode drawn at
random. `train`: a forward, a backward and a step of the optimizer; a VNode has one driver, so each client has its own.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.synchronize import Barrier

import numpy as np
from google.protobuf.message import Message

from benchmarks.rows import Row
from benchmarks.rpc.foreign import absent, foreign, installed
from benchmarks.rpc.network import network
from benchmarks.rpc.registry import group
from pnode.client.batch import from_array
from pnode.transport.addresses import Address
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.grants import Grants
from pnode.transport.passes import Metadata, OpenPasses, with_token
from pnode.transport.remote import RemoteVNode
from pnode.transport.tensors import metas
from pnode.v1 import orchestrator_pb2, spec_pb2, tensor_pb2, vnode_pb2

EXPERTS, CLIENTS, FEATURES = 16, 16, 1024
ROWS = 2048 // CLIENTS
_CALL_S = 120.0
# Of one client, so that hivemind's takes about ten seconds.
_CALLS = {"forward": 8, "train": 2}


class Given(OpenPasses):
    """The rights to call VNodes that another process was given, for a client process."""

    def __init__(self, experts: Sequence[orchestrator_pb2.Location]) -> None:
        self._grants = Grants(time.time)
        for location in experts:
            self._grants.learn(location)

    def metadata(self, service: str, address: Address, request: Message, deadline: Deadline) -> Metadata:
        del service, address, deadline
        return with_token(self._grants.token_for(request))


def ffn(name: str, profile: str) -> spec_pb2.VNodeSpec:
    """hivemind's expert as a VNode; its loss is over the output."""
    f, hidden = FEATURES, 4 * FEATURES
    up = spec_pb2.Linear(in_features=f, out_features=hidden, bias=True)
    down = spec_pb2.Linear(in_features=hidden, out_features=f, bias=True)
    return spec_pb2.VNodeSpec(
        id=name,
        run=name,
        profile=profile,
        inputs=[tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DTYPE_F32, shape=[f])],
        targets=[tensor_pb2.TensorSpec(name="label", dtype=tensor_pb2.DTYPE_I64)],
        operators=[
            spec_pb2.Operator(name="up", inputs=["x"], output="up", linear=up),
            spec_pb2.Operator(name="gelu", inputs=["up"], output="gelu", gelu=spec_pb2.Gelu()),
            spec_pb2.Operator(name="down", inputs=["gelu"], output="down", linear=down),
            spec_pb2.Operator(name="add", inputs=["x", "down"], output="add", add=spec_pb2.Add()),
            spec_pb2.Operator(
                name="y", inputs=["add"], output="y", layer_norm=spec_pb2.LayerNorm(features=f, eps=1e-12)
            ),
        ],
        outputs=["y"],
        loss=spec_pb2.Loss(cross_entropy=spec_pb2.CrossEntropy(logits="y", target="label")),
        optimizer=spec_pb2.Optimizer(adamw=spec_pb2.AdamW(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)),
        limits=spec_pb2.Limits(memory_bytes=1 << 30, cpu_s=_CALL_S, wall_s=_CALL_S, max_rows=4 * ROWS),
        checkpoint=spec_pb2.CheckpointPolicy(keep=1),
        window=1,
    )


@group("throughput")
def throughput(quick: bool) -> Iterator[Row]:
    """Rows a second, forward alone and trained."""
    for kind in ("forward",) if quick else ("forward", "train"):
        calls = 2 if quick else _CALLS[kind]
        theirs = _theirs(kind, calls) if installed() else None
        for profile in ("samebits-1", "torch"):
            ours = _ours(kind, calls, profile)
            yield Row(f"FFN experts, {kind}, {profile}", ours, "/s")
            if theirs is not None:
                # What the project is measured by is its own profile; torch's kernels are told beside it.
                bounds = {"least": 1.0, "aim": 2.0} if profile == "samebits-1" else {}
                yield Row(f"FFN experts, {kind}, {profile}, against hivemind", ours / theirs, "x", **bounds)
        yield absent("hivemind's FFN experts") if theirs is None else Row(f"hivemind's, {kind}", theirs, "/s")


def _theirs(kind: str, calls: int) -> float:
    with foreign("hivemind_throughput.py", EXPERTS, CLIENTS, ROWS, calls, kind) as script:
        return float(script.line("rows_per_s")["rows_per_s"])


def _ours(kind: str, calls: int, profile: str) -> float:
    """Rows a second through one PNode; its clients are started as hivemind's are, and begin as they do."""
    spawning = multiprocessing.get_context("spawn")
    with network(1, f"limits.max_vnodes={EXPERTS}", "limits.memory=18GiB", "device=cpu") as net:
        experts = [
            net.serve([ffn(f"expert{index}", profile)]).locations[0].SerializeToString() for index in range(EXPERTS)
        ]
        start = spawning.Barrier(CLIENTS + 1, timeout=300)
        clients = [
            spawning.Process(target=_client, args=(kind, experts, index, calls, start), daemon=True)
            for index in range(CLIENTS)
        ]
        for each in clients:
            each.start()
        start.wait()
        started = time.perf_counter()
        start.wait()
        seconds = time.perf_counter() - started
        for each in clients:
            each.join(10)
    return CLIENTS * calls * ROWS / seconds


def _client(kind: str, raw: Sequence[bytes], index: int, calls: int, start: Barrier) -> None:
    """One client process: a call to warm up, then `calls` of them between two meetings."""
    experts = [orchestrator_pb2.Location.FromString(each) for each in raw]
    with ChannelPool(passes=Given(experts)) as pool:
        call = (_forwards if kind == "forward" else _steps)(pool, experts, index)
        call()
        start.wait()
        for _ in range(calls):
            call()
        start.wait()


def _forwards(pool: ChannelPool, experts: Sequence[orchestrator_pb2.Location], index: int) -> Callable[[], None]:
    drawn = random.Random(index)
    x = from_array("x", np.random.default_rng(index).standard_normal((ROWS, FEATURES), np.float32))

    def call() -> None:
        at = drawn.choice(experts)
        head = vnode_pb2.ForwardRequest(fence=at.fence, inputs=metas([x]))
        reply = RemoteVNode(pool, at.address).forward(Parcel(head, [x.payload]), Deadline.after(_CALL_S))
        assert len(reply.payloads[0]) == len(x.payload)

    return call


def _steps(pool: ChannelPool, experts: Sequence[orchestrator_pb2.Location], index: int) -> Callable[[], None]:
    at = experts[index]
    vnode, fence = RemoteVNode(pool, at.address), at.fence
    rng = np.random.default_rng(index)
    x = from_array("x", rng.standard_normal((ROWS, FEATURES), np.float32))
    label = from_array("label", rng.integers(0, FEATURES, ROWS))
    version = 0

    def call() -> None:
        nonlocal version
        head = vnode_pb2.TrainRequest(
            fence=fence, step=version, microbatch=0, num_microbatches=1, batch_rows=ROWS,
            want_input_gradients=True, inputs=metas([x]), targets=metas([label]),
        )  # fmt: skip
        reply = vnode.train(Parcel(head, [x.payload, label.payload]), Deadline.after(_CALL_S))
        assert len(reply.payloads[0]) == len(x.payload)
        apply = vnode_pb2.ApplyRequest(fence=fence, step=version, num_microbatches=1)
        version = vnode.apply(apply, Deadline.after(_CALL_S)).version

    return call
