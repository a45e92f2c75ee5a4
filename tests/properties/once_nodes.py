"""Nodes of fibers: the real allocations, hosted VNodes, ledgers, chain and stage; workers that die when told to."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from node_world import MAX_BYTES, ROOMY, InProcessWorker, Reply, batch, specs
from once_fibers import Scheduler
from once_network import Network, Process

from pnode.client.local import LocalRun
from pnode.errors import BlobMissing, WorkerLost
from pnode.node.allocations import Allocations
from pnode.node.chain import TrainChain
from pnode.node.gate import Gate
from pnode.node.hosted import HostedVNode
from pnode.node.routes import Route, Routes
from pnode.node.serving import Serving
from pnode.observe.counters import Counters
from pnode.transport.deadline import Deadline
from pnode.transport.retry import Backoff
from pnode.transport.turns import Bounds
from pnode.v1 import node_pb2, spec_pb2, tensor_pb2, vnode_pb2
from pnode.vnode.ledger import Ledger
from pnode.vnode.tensors import TensorBytes

STAGES, MICROBATCHES, STEPS = 3, 3, 3
MOMENTS = ("before", "after")


@lru_cache(maxsize=1)
def truth() -> tuple[list[list[str]], list[float]]:
    """The undisturbed run: digests of every VNode's state by version, and the losses."""
    run = LocalRun(specs(STAGES))
    states, losses = [[sha256(state) for state in run.states()]], []
    for step in range(STEPS):
        losses.append(run.step(step, batch(step), MICROBATCHES))
        states.append([sha256(state) for state in run.states()])
    return states, losses


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Witness:
    """Sees every command of every worker, and holds it to the truth. `deaths`: of the next commands' workers, when."""

    def __init__(self) -> None:
        self.deaths: deque[str] = deque()
        self.applied: set[tuple[object, int, int]] = set()
        self.num_applied = 0

    def death(self, command: str) -> str:
        """When the worker of this command dies, if it does."""
        if command == "create" or not self.deaths:
            return ""
        return self.deaths.popleft()


class MortalWorker(InProcessWorker):
    """The real commands; dies before or after one of them when it is told to."""

    def __init__(self, spec: spec_pb2.VNodeSpec, died: Callable[[str, str], None], witness: Witness) -> None:
        self._witness = witness
        self._index = [each.id for each in specs(STAGES)].index(spec.id)
        self._lives = 0
        self._version = 0
        self._seen: set[tuple[int, int, int]] = set()
        super().__init__(spec, died, lambda command: None)

    def call(
        self, command: str, fields: Mapping[str, Any], tensors: Sequence[TensorBytes], *, deadline_s: float | None
    ) -> Reply:
        moment = self._witness.death(command)
        if moment == "before":
            self.die()
        reply = super().call(command, fields, tensors, deadline_s=deadline_s)
        self._check(command, fields, reply)
        if moment == "after":
            self.die()
            raise WorkerLost("killed by signal 9")
        return reply

    def _check(self, command: str, fields: Mapping[str, Any], reply: Reply) -> None:
        """No microbatch is accumulated twice, no step applied twice, and every state is the undisturbed run's."""
        if command in ("create", "restore"):
            self._lives += 1
            self._version = int(reply.fields["version"])
        elif command == "finish" and not reply.fields["duplicate"]:
            self._once((self._lives, fields["step"], fields["microbatch"]))
            assert fields["step"] == self._version
        elif command == "apply" and fields["step"] == self._version:
            self._once((self._lives, fields["step"], -1))
            self._version += 1
            assert reply.fields["version"] == self._version
            self._witness.num_applied += 1
        if command in ("restore", "apply"):
            (state,) = super().call("state", {}, (), deadline_s=None).tensors
            assert sha256(bytes(state.payload)) == truth()[0][self._version][self._index]

    def _once(self, deed: tuple[int, int, int]) -> None:
        assert deed not in self._seen, f"{deed} was done twice"
        self._seen.add(deed)


class Shelf:
    """A store: what was uploaded, by digest."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def fetch(self, record: vnode_pb2.StateRecord, max_bytes: int, deadline: Deadline) -> Sequence[TensorBytes]:
        del max_bytes, deadline
        if not record.sha256:
            return ()
        if record.sha256 not in self.blobs:
            raise BlobMissing(record.sha256)
        content = self.blobs[record.sha256]
        return (TensorBytes("state", tensor_pb2.DTYPE_U8, (len(content),), content),)

    def upload(self, vnode: str, version: int, state: bytes | memoryview, deadline: Deadline) -> vnode_pb2.StateRecord:
        content = bytes(state)
        self.blobs[sha256(content)] = content
        return vnode_pb2.StateRecord(vnode=vnode, version=version, sha256=sha256(content), size_bytes=len(content))


class OnceNode(Process):
    """One PNode: everything of it that a training call goes through."""

    def __init__(self, address: str, network: Network, shelf: Shelf, witness: Witness, reply_bytes: int) -> None:
        super().__init__(address)
        self._scheduler: Scheduler = network.scheduler
        self._shelf = shelf
        self._witness = witness
        self._reply_bytes = reply_bytes
        self.allocations = Allocations(self._host, max_vnodes=4, budget=ROOMY, in_flight_bytes=1 << 26)
        routes = Routes(
            local=self._local,
            orchestrator=network.stub("orchestrator", "orchestrator"),
            remote=lambda at: network.stub(at, "vnodes"),
        )
        chain = TrainChain(
            routes=routes,
            max_whole_bytes=MAX_BYTES,
            backoff=lambda: Backoff(0.0),
            wait=self._wait,
            on_peer_lost=lambda fence, reason, message: None,
        )
        self.serving = Serving(
            gate=Gate(),
            allocations=self.allocations,
            chain=chain,
            numerics_classes=["samebits-1"],
            max_whole_bytes=MAX_BYTES,
            queue=Bounds(8, 6),
            counters=Counters(),
        )
        self.serves = {"vnodes": self.serving, "node": self}

    def allocate(self, request: node_pb2.AllocateRequest, deadline: Deadline) -> node_pb2.AllocateReply:
        del deadline
        self.allocations.allocate(request)
        return node_pb2.AllocateReply()

    def _wait(self, seconds: float) -> bool:
        del seconds
        self._scheduler.sleep()
        return self.dead

    def _host(self, request: node_pb2.AllocateRequest) -> HostedVNode:
        hosted = HostedVNode(
            request,
            fork=lambda spec, died: MortalWorker(spec, died, self._witness),
            shelf=self._shelf,  # type: ignore[arg-type]  # has what is asked of one
            on_lost=lambda fence, reason, message: None,
        )
        # So little room that replies are evicted, and computed again down the chain.
        hosted.ledger = Ledger(request.spec.window, max_reply_bytes=self._reply_bytes)
        hosted.ledger.reset(request.fence.generation, request.record.version)
        return hosted

    def _local(self, run: str, vnode: str) -> Route | None:
        found = self.allocations.find(run, vnode)
        return None if found is None else Route(found.fence, self.serving, self.address)
