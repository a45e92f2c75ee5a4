"""Suspended in turn: a peer, the orchestrator, the store. Every caller has its status in time; all goes on after."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from node_world import ROWS, RUN, batch, reference, specs

from pnode.client.lease import RunLease
from pnode.devnet.child import PNODE, Child, end_all
from pnode.errors import DeadlineExceeded, PNodeError, StoreUnavailable, Unavailable
from pnode.orchestrator.issuing import IssuedPasses, Issuer
from pnode.security.authority import Authority
from pnode.storage.content import get_content
from pnode.storage.urls import open_store
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.joiner import Joiner
from pnode.transport.remote import RemoteRuns, RemoteVNode
from pnode.transport.retry import Backoff, retry
from pnode.transport.tensors import metas, payloads
from pnode.v1 import orchestrator_pb2, vnode_pb2
from pnode.vnode.state import run_digest
from tests.seaweed import S3Endpoint, seaweed

# A cold kernel cache is compiled by the first node that starts.
START_S = 240.0
SHORT_S = 1.5
# A status that comes with the deadline may be late by what a busy machine needs to run the thread that waits for it.
SLACK_S = 5.0

pytestmark = pytest.mark.timeout(400)


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def in_time(*errors: type[PNodeError]) -> Iterator[None]:
    """What happens inside ends with one of these errors, not before long and not after its deadline of SHORT_S."""
    began = time.monotonic()
    with pytest.raises(errors):
        yield
    assert time.monotonic() - began < SHORT_S + SLACK_S


class Net:
    """An orchestrator, two nodes and a real S3 server, each a process of its own; one run of two stages on them."""

    def __init__(self, folder: Path, store: S3Endpoint, stack: ExitStack) -> None:
        self.store = store
        self._folder = folder
        self.children: list[Child] = []
        stack.callback(lambda: end_all(self.children, 20.0))
        self.orchestrator = self._start(
            "o", "role=orchestrator", "orchestrator.port=0", "orchestrator.heartbeat_s=1min"
        )
        where = f"orchestrator.address={self.orchestrator.address}"
        for name in "ab":
            self._start(name, where, "node.port=0", "device=cpu")
        self._channels = stack.enter_context(ChannelPool(passes=Joiner.of_driver(self.orchestrator.address)))
        self.runs = RemoteRuns(self._channels, self.orchestrator.address)
        self._closing = threading.Event()
        spec = orchestrator_pb2.RunSpec(id=RUN, vnodes=specs(2))
        self._lease = RunLease(self.runs, spec, "test", closing=self._closing, backoff=Backoff)
        stack.callback(self._lease.close)
        stack.callback(self._closing.set)
        status = self._running()
        self.fences = [at.fence for at in status.locations]
        self.vnodes = [RemoteVNode(self._channels, at.address) for at in status.locations]
        self._snapshotter = stack.enter_context(ChannelPool(passes=self._passes_of_orchestrator(status)))
        self.nodes = [next(c for c in self.children if c.address == at.address) for at in status.locations]
        assert self.nodes[0] is not self.nodes[1]
        self.step = 0

    def _passes_of_orchestrator(self, status: orchestrator_pb2.RunStatus) -> IssuedPasses:
        """Only the orchestrator may ask for a Snapshot: whoever can read its keys may do as it."""
        authority = Authority.kept(self._folder / "o" / "authority")
        passes = IssuedPasses(Issuer(authority, token_s=600.0, certificate_s=600.0), tls=False)
        for at in status.locations:
            passes.expect(at.address, at.node_uuid)
        return passes

    def _start(self, name: str, *arguments: str) -> Child:
        common = (
            f"store.s3.bucket={self.store.bucket}",
            f"store.s3.endpoint={self.store.url}",
            "store.s3.region=us-east-1",
            "orchestrator.spread=true",
            "orchestrator.min_nodes=2",
            f"node.data_dir={self._folder}/{name}",
        )
        child = Child(name, [*PNODE, *common, *arguments], self._folder / f"{name}.log")
        self.children.append(child)
        child.wait_serving(START_S)
        return child

    def _running(self) -> orchestrator_pb2.RunStatus:
        deadline = Deadline.after(60.0)
        while (status := self._lease.status(deadline)).state != orchestrator_pb2.RUN_STATE_RUNNING:
            assert not deadline.passed, status.message
            self._closing.wait(0.1)
        return status

    def train(self, microbatch: int, deadline: Deadline) -> vnode_pb2.TrainReply:
        part = batch(self.step).split(4)[microbatch]
        head = vnode_pb2.TrainRequest(
            fence=self.fences[0],
            step=self.step,
            microbatch=microbatch,
            num_microbatches=4,
            batch_rows=ROWS,
            inputs=metas(part.inputs),
            targets=metas(part.targets),
        )
        return self.vnodes[0].train(Parcel(head, payloads((*part.inputs, *part.targets))), deadline).head

    def forward(self) -> None:
        tensors = batch(0).inputs
        head = vnode_pb2.ForwardRequest(fence=self.fences[0], inputs=metas(tensors))
        self.vnodes[0].forward(Parcel(head, payloads(tensors)), Deadline.after(20.0))

    def whole_step(self) -> None:
        """Every microbatch, then Apply, as a driver sends them."""
        deadline = Deadline.after(60.0)
        with ThreadPoolExecutor(4) as threads:
            for future in [threads.submit(self._again, i, deadline) for i in range(4)]:
                future.result(timeout=90)
        for fence, vnode in zip(self.fences, self.vnodes, strict=True):
            request = vnode_pb2.ApplyRequest(fence=fence, step=self.step, num_microbatches=4)
            assert vnode.apply(request, deadline).version == self.step + 1
        self.step += 1

    def _again(self, microbatch: int, deadline: Deadline) -> vnode_pb2.TrainReply:
        backoff = Backoff(0.05, cap_s=0.5)
        return retry(lambda: self.train(microbatch, deadline), deadline, backoff, self._closing.wait)

    def status(self, seconds: float) -> orchestrator_pb2.RunStatus:
        return self._lease.status(Deadline.after(seconds))

    def snapshot(self, seconds: float) -> vnode_pb2.StateRecord:
        request = vnode_pb2.SnapshotRequest(fence=self.fences[0], version=self.step)
        vnode = RemoteVNode(self._snapshotter, self.vnodes[0].address)
        return vnode.snapshot(request, Deadline.after(seconds)).record

    def checkpoint(self, seconds: float) -> list[vnode_pb2.StateRecord]:
        generation = self.fences[0].generation
        return list(self._lease.checkpoint(generation, self.step, self.step, Deadline.after(seconds)).records)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    with ExitStack() as stack:
        store = stack.enter_context(seaweed())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in store.environ().items():
            patch.setenv(name, value)
        yield Net(tmp_path_factory.mktemp("net"), store, stack)


def test_a_suspended_peer_ends_calls_in_time_and_goes_on_afterwards(net: Net) -> None:
    net.whole_step()
    with suspended(net.nodes[1].pid):
        with in_time(DeadlineExceeded):
            net.train(0, Deadline.after(SHORT_S))
        with in_time(DeadlineExceeded):
            net.vnodes[1].describe(vnode_pb2.DescribeRequest(run=RUN, vnode="stage2"), Deadline.after(SHORT_S))
        net.forward()  # its neighbour serves on
    net.whole_step()


def test_a_suspended_orchestrator_stops_nobody_who_works(net: Net) -> None:
    with suspended(net.orchestrator.pid):
        with in_time(DeadlineExceeded):
            net.status(SHORT_S)
        net.whole_step()
        net.forward()
    status = net.status(20.0)
    assert status.state == orchestrator_pb2.RUN_STATE_RUNNING
    assert status.generation == net.fences[0].generation, "nothing was lost"


def test_a_suspended_store_delays_checkpoints_and_nothing_else(net: Net) -> None:
    with suspended(net.store.pid):
        with in_time(DeadlineExceeded, StoreUnavailable):
            net.snapshot(SHORT_S)
        with in_time(DeadlineExceeded, StoreUnavailable, Unavailable):
            net.checkpoint(SHORT_S)
        net.whole_step()
    net.whole_step()
    net.snapshot(60.0)


def test_after_all_that_the_run_stands_where_an_undisturbed_one_does(net: Net) -> None:
    records = retry(
        lambda: net.checkpoint(60.0), Deadline.after(120.0), Backoff(0.5), threading.Event().wait, on=(PNodeError,)
    )
    store = open_store(f"s3://{net.store.bucket}/pnode", endpoint_url=net.store.url, region="us-east-1")
    try:
        states = [get_content(store, each.sha256, max_bytes=1 << 24) for each in records]
    finally:
        store.close()
    assert run_digest(states) == reference(net.step)
