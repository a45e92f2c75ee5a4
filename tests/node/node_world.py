"""A small run on nodes inside the test process: the real chain, ledger and Stage, without the process of a worker."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pnode.client.batch import Batch, from_array
from pnode.client.cut import Plan, cut
from pnode.client.local import LocalRun
from pnode.client.model import Model, transformer_classifier
from pnode.errors import WorkerLost
from pnode.node.allocations import Allocations
from pnode.node.budget import Budget
from pnode.node.chain import TrainChain
from pnode.node.gate import Gate
from pnode.node.hosted import HostedVNode
from pnode.node.quota import Quota
from pnode.node.routes import Route, Routes
from pnode.node.serving import Serving
from pnode.node.shelf import StateShelf
from pnode.node.workers import Fork, Worker
from pnode.observe.counters import Counters
from pnode.sandbox.shared import copied
from pnode.sandbox.stage_program import StageCommands
from pnode.storage.blob import BlobStore
from pnode.storage.local import LocalStore
from pnode.transport.api import TrainRequest
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.retry import Backoff
from pnode.transport.tensors import metas, payloads
from pnode.transport.turns import Bounds
from pnode.v1 import node_pb2, orchestrator_pb2, spec_pb2, tensor_pb2, vnode_pb2
from pnode.vnode.state import run_digest
from pnode.vnode.tensors import TensorBytes

RUN = "small"
ROWS = 8
MAX_BYTES = 1 << 20
ROOMY = Budget(1 << 30, machine=lambda: 1 << 40, free=lambda: 1 << 40)
MODEL = transformer_classifier(tokens=3, in_features=4, features=8, num_blocks=2, num_heads=2, mlp=2, classes=3)
LIMITS = spec_pb2.Limits(memory_bytes=256 << 20, cpu_s=30, wall_s=30, max_rows=ROWS)
OPTIMIZER = spec_pb2.Optimizer(adamw=spec_pb2.AdamW(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1))


T = TypeVar("T")


def soon(seconds: float = 20.0) -> Deadline:
    """A deadline that no healthy test reaches."""
    return Deadline.after(seconds)


def specs(stages: int = 3, window: int = 4, model: Model = MODEL) -> list[spec_pb2.VNodeSpec]:
    """The small model, cut."""
    return cut(model, Plan(run=RUN, seed=7, optimizer=OPTIMIZER, limits=LIMITS, window=window), stages=stages)


def batch(step: int) -> Batch:
    """The rows of a step: some numbers, a pure function of the step."""
    rows = np.arange(ROWS * 12, dtype=np.int64).reshape(ROWS, 3, 4) * (step + 3) % 17
    tokens = from_array("tokens", (rows - 8).astype(np.float32) / np.float32(8))
    return Batch((tokens,), (from_array("label", np.arange(ROWS, dtype=np.int64) * (step + 1) % 3),))


def reference(steps: int) -> str:
    """The digest of the undisturbed run: one process, uncut, each batch whole."""
    run = LocalRun(specs(1))
    for step in range(steps):
        run.step(step, batch(step))
    return run.digest()


@dataclass(frozen=True)
class Reply:
    """What a worker answered."""

    fields: dict[str, Any]
    tensors: Sequence[TensorBytes]


class InProcessWorker:
    """The worker's own commands, run here. `die` does what SIGKILL does to the real one."""

    def __init__(self, spec: spec_pb2.VNodeSpec, died: Callable[[str, str], None], ran: Callable[[str], None]) -> None:
        self._ran = ran
        self._commands = StageCommands(num_threads=1, device="cpu")
        self._died = died
        self._dead = False
        self._one_at_a_time = threading.Lock()
        raw = spec.SerializeToString()
        self.call("create", {}, [TensorBytes("spec", tensor_pb2.DTYPE_U8, (len(raw),), raw)], deadline_s=None)

    used_bytes = 0

    def call(
        self, command: str, fields: Mapping[str, Any], tensors: Sequence[TensorBytes], *, deadline_s: float | None
    ) -> Reply:
        with self._one_at_a_time:
            if self._dead:
                raise WorkerLost("killed by signal 9")
            answered, replies = self._commands(command, dict(fields), list(tensors))
            copies = [copied(tensor) for tensor in replies]
            self._ran(command)
            return Reply(dict(answered), copies)

    def exchange(
        self,
        command: str,
        fields: Mapping[str, Any],
        tensors: Sequence[TensorBytes],
        read: Callable[[Reply], T],
        *,
        deadline_s: float | None,
    ) -> T:
        return read(self.call(command, fields, tensors, deadline_s=deadline_s))

    def die(self) -> None:
        self._dead = True
        self._died("WORKER_LOST", "killed by signal 9")

    def kill(self, reason: str) -> None:
        del reason
        self.die()

    def close(self) -> None:
        self._dead = True


class OneMap:
    """The orchestrator's Resolve over the nodes of a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def resolve(self, request: orchestrator_pb2.ResolveRequest, deadline: Deadline, /) -> orchestrator_pb2.ResolveReply:
        node = self._world.homes[request.vnode]
        fence = node.allocations.get(request.run, request.vnode).fence
        return orchestrator_pb2.ResolveReply(location=orchestrator_pb2.Location(fence=fence, address=node.name))


class WorldNode:
    """One node's VNodes, without its processes and sockets."""

    def __init__(self, name: str, world: World, shelf: StateShelf) -> None:
        self.name = name
        self.workers: dict[str, InProcessWorker] = {}
        self._world = world
        self.began: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.lost: list[tuple[str, str]] = []
        self.peers_lost: list[str] = []
        self._shelf = shelf
        self.gate = Gate()
        self.counters = Counters()
        self.allocations = Allocations(self._host, max_vnodes=4, budget=ROOMY, in_flight_bytes=1 << 26)
        self.closing = threading.Event()
        routes = Routes(
            local=self._local,
            orchestrator=OneMap(world),  # type: ignore[arg-type]  # a chain only resolves
            remote=lambda address: world.nodes[address].serving,
        )
        chain = TrainChain(
            routes=routes,
            max_whole_bytes=MAX_BYTES,
            backoff=lambda: Backoff(0.001, cap_s=0.01),
            wait=self.closing.wait,
            on_peer_lost=lambda fence, reason, message: self.peers_lost.append(fence.vnode),
        )
        self.serving = Serving(
            gate=self.gate,
            allocations=self.allocations,
            chain=chain,
            numerics_classes=["samebits-1"],
            max_whole_bytes=MAX_BYTES,
            queue=Bounds(8, 6),
            counters=self.counters,
        )

    def _host(self, request: node_pb2.AllocateRequest) -> HostedVNode:
        world = self._world

        def fork(spec: spec_pb2.VNodeSpec, died: Callable[[str, str], None]) -> Worker:
            def ran(command: str) -> None:
                if command == "begin":
                    self.began[spec.id].set()

            if world.fork is not None:
                return world.fork(spec, died)
            self.workers[spec.id] = InProcessWorker(spec, died, ran)
            return self.workers[spec.id]

        def lost(fence: vnode_pb2.Fence, reason: str, message: str) -> None:
            self.lost.append((fence.vnode, reason))

        return HostedVNode(request, fork=fork, shelf=self._shelf, on_lost=lost)

    def _local(self, run: str, vnode: str) -> Route | None:
        found = self.allocations.find(run, vnode)
        return None if found is None else Route(found.fence, self.serving, self.name)


class World:
    """Three VNodes on the nodes that `homes` names, in model order."""

    def __init__(
        self,
        folder: Path,
        homes: Sequence[str] = ("a", "b", "c"),
        window: int = 4,
        *,
        store: BlobStore | None = None,
        model: Model = MODEL,
        fork: Fork | None = None,
    ) -> None:
        self.specs = specs(len(homes), window, model)
        self.fork = fork
        self.generation, self.epoch = 1, 1
        store = LocalStore(folder / "store") if store is None else store
        shelf = StateShelf(store, Quota(store, folder / "uploads.json", None))
        self.nodes = {name: WorldNode(name, self, shelf) for name in dict.fromkeys(homes)}
        self.homes = {spec.id: self.nodes[home] for spec, home in zip(self.specs, homes, strict=True)}
        for spec in self.specs:
            self.homes[spec.id].allocations.allocate(
                node_pb2.AllocateRequest(spec=spec, fence=self.fence(spec.id), record=vnode_pb2.StateRecord())
            )

    def fence(self, vnode: str) -> vnode_pb2.Fence:
        return vnode_pb2.Fence(run=RUN, vnode=vnode, generation=self.generation, epoch=self.epoch)

    @property
    def first(self) -> str:
        return self.specs[0].id

    def vnode(self, name: str) -> HostedVNode:
        return self.homes[name].allocations.get(RUN, name)

    def request(self, step: int, microbatch: int, num_microbatches: int = 4) -> TrainRequest:
        part = batch(step).split(num_microbatches)[microbatch]
        head = vnode_pb2.TrainRequest(
            fence=self.fence(self.first),
            step=step,
            microbatch=microbatch,
            num_microbatches=num_microbatches,
            batch_rows=ROWS,
            inputs=metas(part.inputs),
            targets=metas(part.targets),
        )
        return Parcel(head, payloads((*part.inputs, *part.targets)))

    def train(self, request: TrainRequest) -> vnode_pb2.TrainReply:
        return self.homes[self.first].serving.train(request, soon()).head

    def apply(self, step: int, num_microbatches: int = 4) -> list[vnode_pb2.ApplyReply]:
        return [
            self.homes[spec.id].serving.apply(
                vnode_pb2.ApplyRequest(fence=self.fence(spec.id), step=step, num_microbatches=num_microbatches), soon()
            )
            for spec in self.specs
        ]

    def snapshot(self, version: int) -> list[vnode_pb2.StateRecord]:
        return [
            self.homes[spec.id]
            .serving.snapshot(vnode_pb2.SnapshotRequest(fence=self.fence(spec.id), version=version), soon())
            .record
            for spec in self.specs
        ]

    def restore(self, records: Sequence[vnode_pb2.StateRecord]) -> None:
        self.generation += 1
        for spec, record in zip(self.specs, records, strict=True):
            request = vnode_pb2.RestoreRequest(fence=self.fence(spec.id), record=record)
            self.homes[spec.id].serving.restore(request, soon())

    def digest(self) -> str:
        workers = [self.homes[spec.id].workers[spec.id] for spec in self.specs]
        return run_digest(
            [bytes(worker.call("state", {}, (), deadline_s=None).tensors[0].payload) for worker in workers]
        )
