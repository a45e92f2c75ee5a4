"""A network of real processes on this machine for the benchmarks: an orchestrator and PNodes, as a user starts them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pnode.devnet.child import PNODE, Child, end_all
from pnode.errors import PNodeError
from pnode.transport.addresses import parse_orchestrator
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.joiner import Joiner
from pnode.transport.remote import RemoteOrchestrator, RemoteRuns, RemoteVNode
from pnode.v1 import orchestrator_pb2, spec_pb2

# With a cold kernel cache the first node compiles for about a minute.
START_S = 500.0
_LOOK_S = 0.05


@dataclass(frozen=True)
class Network:
    """The addresses, and channels of the caller's own."""

    orchestrator_address: str
    channels: ChannelPool
    nodes: tuple[Child, ...]

    @property
    def runs(self) -> RemoteRuns:
        """Where runs are submitted."""
        return RemoteRuns(self.channels, self.orchestrator_address)

    @property
    def orchestrator(self) -> RemoteOrchestrator:
        """Where failures are reported."""
        return RemoteOrchestrator(self.channels, self.orchestrator_address)

    def vnodes(self, address: str) -> RemoteVNode:
        """The VNodes at an address."""
        return RemoteVNode(self.channels, address)

    def serve(self, specs: Sequence[spec_pb2.VNodeSpec]) -> orchestrator_pb2.RunStatus:
        """Submit a run and wait until its VNodes serve."""
        run = orchestrator_pb2.RunSpec(id=specs[0].run, vnodes=specs)
        reply = self.runs.submit(orchestrator_pb2.SubmitRequest(run=run, holder="benchmarks"), Deadline.after(START_S))
        status, until = reply.status, time.monotonic() + START_S
        while status.state != orchestrator_pb2.RUN_STATE_RUNNING:
            if time.monotonic() > until:
                raise PNodeError(f"run {run.id} does not serve: {status.message}")
            time.sleep(_LOOK_S)
            request = orchestrator_pb2.StatusRequest(run=run.id, lease=reply.lease)
            status = self.runs.status(request, Deadline.after(START_S)).status
        return status


@contextmanager
def network(num_nodes: int, *overrides: str) -> Iterator[Network]:
    """An orchestrator and `num_nodes` PNodes, each `python -m pnode`, with keys of the configuration as `overrides`.

    All of them are ended at the end.
    """
    children: list[Child] = []
    with tempfile.TemporaryDirectory(prefix="pnode-bench-") as name:
        folder = Path(name)
        common = (f"store.url={(folder / 'store').as_uri()}", "log.level=warning", *overrides)

        def launch(name: str, *keys: str) -> Child:
            child = Child(name, (*PNODE, *common, *keys), folder / f"{name}.log")
            children.append(child)
            child.wait_serving(START_S)
            return child

        try:
            orchestrator = launch(
                "orchestrator", "role=orchestrator", "orchestrator.port=0", "orchestrator.heartbeat_s=1s",
                "orchestrator.missed=30", "orchestrator.lease_s=10min", f"orchestrator.min_nodes={num_nodes}",
                "orchestrator.spread=true", "orchestrator.member_port=0", f"node.data_dir={folder / 'orchestrator'}",
            )  # fmt: skip
            nodes = [
                launch(
                    f"node-{index}", "role=node", "node.port=0", f"orchestrator.address={orchestrator.address}",
                    f"node.data_dir={folder / f'node-{index}'}",
                )
                for index in range(num_nodes)
            ]  # fmt: skip
            where = str(parse_orchestrator(orchestrator.address).address)
            with ChannelPool(passes=Joiner.of_driver(orchestrator.address)) as channels:
                yield Network(where, channels, tuple(nodes))
        finally:
            end_all(children, 3.0)
