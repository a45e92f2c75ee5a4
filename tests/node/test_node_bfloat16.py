"""bf16 over the wire and into boxes: two nodes served by gRPC, workers in their sandboxes, one boundary between them.

Every way must end at the bits of the uncut run in one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from node_world import MODEL, World, soon, specs

from pnode.client.batch import Batch, bfloat16_from, from_array
from pnode.client.local import LocalRun
from pnode.errors import BadRequest
from pnode.sandbox.supervisor import ZygoteProcess
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.remote import RemoteVNode
from pnode.transport.server import make_server
from pnode.transport.tensors import metas, payloads, unpack
from pnode.v1 import tensor_pb2, vnode_pb2
from pnode.vnode.state import run_digest
from pnode.vnode.tensors import TensorBytes

ROWS, STEPS = 8, 2
NARROW = replace(
    MODEL, inputs=(tensor_pb2.TensorSpec(name="tokens", dtype=tensor_pb2.DTYPE_BF16, shape=MODEL.inputs[0].shape),)
)

pytestmark = pytest.mark.timeout(600)


def rows(step: int) -> Batch:
    """Numbers that bf16 has to round."""
    tokens = np.sin(np.arange(ROWS * 12, dtype=np.float64) * (step + 1)).astype(np.float32).reshape(ROWS, 3, 4)
    label = from_array("label", np.arange(ROWS, dtype=np.int64) * (step + 1) % 3)
    return Batch((bfloat16_from("tokens", tokens),), (label,))


@pytest.fixture(scope="module")
def zygote() -> Iterator[ZygoteProcess]:
    with ZygoteProcess.start(deadline_s=500) as started:
        yield started


@pytest.fixture(scope="module")
def uncut() -> LocalRun:
    run = LocalRun(specs(1, model=NARROW))
    for step in range(STEPS):
        run.step(step, rows(step))
    return run


class Net(NamedTuple):
    """Two stages, each behind a server of its own."""

    world: World
    stages: tuple[RemoteVNode, RemoteVNode]

    def forward(self, stage: int, inputs: Sequence[TensorBytes]) -> list[TensorBytes]:
        head = vnode_pb2.ForwardRequest(fence=self.world.fence(f"stage{stage + 1}"), inputs=metas(inputs))
        reply = self.stages[stage].forward(Parcel(head, payloads(inputs)), soon())
        return unpack(reply.head.outputs, reply.payloads, max_bytes=1 << 20)

    def train(self, step: int, num: int) -> list[TensorBytes]:
        """The gradients of the inputs of all microbatches."""
        found = []
        for index, part in enumerate(rows(step).split(num)):
            head = vnode_pb2.TrainRequest(
                fence=self.world.fence("stage1"), step=step, microbatch=index, num_microbatches=num, batch_rows=ROWS,
                inputs=metas(part.inputs), targets=metas(part.targets), want_input_gradients=True,
            )  # fmt: skip
            reply = self.stages[0].train(Parcel(head, payloads((*part.inputs, *part.targets))), soon())
            found += unpack(reply.head.input_gradients, reply.payloads, max_bytes=1 << 20)
        for stage, name in zip(self.stages, ("stage1", "stage2"), strict=True):
            fence = self.world.fence(name)
            stage.apply(vnode_pb2.ApplyRequest(fence=fence, step=step, num_microbatches=num), soon())
        return found

    def states(self) -> list[bytes]:
        workers = [self.world.vnode(spec.id)._worker for spec in self.world.specs]
        return [bytes(each.call("state", {}, (), deadline_s=None).tensors[0].payload) for each in workers if each]


@contextmanager
def net(folder: Path, zygote: ZygoteProcess, num_threads: int) -> Iterator[Net]:
    world = World(
        folder,
        ("a", "b"),
        model=NARROW,
        fork=lambda spec, died: zygote.fork(
            spec, num_threads=num_threads, on_exit=lambda _, verdict: died(verdict.reason, verdict.sentence)
        ),
    )
    servers = [make_server(vnodes=node.serving) for node in world.nodes.values()]
    with ChannelPool() as pool:
        stages = [RemoteVNode(pool, f"127.0.0.1:{server.port}") for server in servers]
        world.nodes["b"].serving = stages[1]  # type: ignore[assignment]  # what stage 1 finds there is over the wire
        for server in servers:
            server.start()
        yield Net(world, (stages[0], stages[1]))
        for server in servers:
            server.stop(1.0)
    for spec in world.specs:
        world.vnode(spec.id).close()


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_training_and_inference_give_the_bits_of_one_process(
    tmp_path: Path, zygote: ZygoteProcess, uncut: LocalRun, num_threads: int, num_microbatches: int
) -> None:
    with net(tmp_path, zygote, num_threads) as both:
        boundary = both.world.specs[1].inputs
        assert [each.dtype for each in boundary] == [tensor_pb2.DTYPE_BF16] * len(boundary)
        gradients = [both.train(step, num_microbatches) for step in range(STEPS)]
        assert {each.dtype for each in gradients[0]} == {tensor_pb2.DTYPE_BF16}
        assert run_digest(both.states()) == uncut.digest()
        given = rows(7)
        logits = both.forward(1, both.forward(0, given.inputs))
        assert [each._replace(payload=bytes(each.payload)) for each in logits] == [
            each._replace(payload=bytes(each.payload)) for each in uncut.forward(given)
        ]


def test_a_checkpoint_of_bf16_vnodes_is_uploaded_and_restored(
    tmp_path: Path, zygote: ZygoteProcess, uncut: LocalRun
) -> None:
    with net(tmp_path, zygote, 1) as both:
        both.train(0, 2)
        records = [
            stage.snapshot(vnode_pb2.SnapshotRequest(fence=both.world.fence(name), version=1), soon()).record
            for stage, name in zip(both.stages, ("stage1", "stage2"), strict=True)
        ]
        both.train(1, 1)
        both.world.generation += 1
        for stage, record in zip(both.stages, records, strict=True):
            fence = both.world.fence(record.vnode)
            stage.restore(vnode_pb2.RestoreRequest(fence=fence, record=record), soon())
        both.train(1, 4)
        assert run_digest(both.states()) == uncut.digest()


def test_another_dtype_is_refused_before_a_worker_is_made_for_it(tmp_path: Path, zygote: ZygoteProcess) -> None:
    wide = from_array("tokens", np.zeros((ROWS, 3, 4), np.float32))
    odd = rows(0).inputs[0]._replace(shape=(ROWS, 4, 3))
    with net(tmp_path, zygote, 1) as both:
        for given, why in ((wide, "expected DTYPE_BF16, got DTYPE_F32"), (odd, r"expected \[rows, \*\[3, 4\]\]")):
            with pytest.raises(BadRequest, match=why):
                both.forward(0, [given])
        assert both.world.vnode("stage1").state == vnode_pb2.VNODE_STATE_ALLOCATED
