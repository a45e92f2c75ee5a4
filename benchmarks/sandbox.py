"""What the sandbox costs and how fast it acts. Run: python -m benchmarks.sandbox --json OUT

Each row has a figure, its unit and what it must reach; the exit code is 1 where one of them does not.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks import rows as table
from benchmarks.rows import Row
from pnode.errors import PNodeError
from pnode.node.node import Node
from pnode.node.settings import NodeSettings
from pnode.sandbox import layers, limits
from pnode.sandbox.supervisor import ZygoteProcess
from pnode.storage.local import LocalStore
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.guards import OpenGuard
from pnode.transport.remote import RemoteNode, RemoteVNode
from pnode.transport.tensors import metas
from pnode.v1 import node_pb2, spec_pb2, tensor_pb2, vnode_pb2
from pnode.v1.tensor_pb2 import DTYPE_F32
from pnode.vnode.tensors import TensorBytes

MIB = 1 << 20
START_S = 500.0


def linear(
    features: int,
    *,
    layers_: int = 1,
    rows: int = 8,
    memory_bytes: int = 64 * MIB,
    wall_s: float = 60.0,
    name: str = "v",
) -> spec_pb2.VNodeSpec:
    """Square linear layers and a loss over the last of them."""
    operators = [
        spec_pb2.Operator(
            name=f"layer{index}",
            inputs=[f"y{index - 1}" if index else "x"],
            output=f"y{index}",
            linear=spec_pb2.Linear(in_features=features, out_features=features, bias=True),
        )
        for index in range(layers_)
    ]
    return spec_pb2.VNodeSpec(
        id=name,
        run="bench",
        profile="samebits-1",
        inputs=[tensor_pb2.TensorSpec(name="x", dtype=DTYPE_F32, shape=[features])],
        targets=[tensor_pb2.TensorSpec(name="label", dtype=tensor_pb2.DTYPE_I64)],
        operators=operators,
        loss=spec_pb2.Loss(cross_entropy=spec_pb2.CrossEntropy(logits=f"y{layers_ - 1}", target="label")),
        optimizer=spec_pb2.Optimizer(sgd=spec_pb2.Sgd(lr=0.1)),
        limits=spec_pb2.Limits(memory_bytes=memory_bytes, cpu_s=60, wall_s=wall_s, max_rows=rows),
        checkpoint=spec_pb2.CheckpointPolicy(keep=1),
        window=1,
    )


def zeros(rows: int, features: int) -> TensorBytes:
    """An input for `linear`."""
    return TensorBytes("x", DTYPE_F32, (rows, features), bytes(4 * rows * features))


def rollup_bytes(pid: int | None, *names: str) -> int:
    """The sum of some lines of /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))


def forks(zygote: ZygoteProcess, num: int) -> Iterator[Row]:
    """From asking for a worker to its first answer; and what an idle one has for itself."""
    seconds, private = [], []
    spec = linear(100)
    for _ in range(num):
        started = time.perf_counter()
        worker = zygote.fork(spec)
        worker.call("forward", {}, [zeros(1, 100)], deadline_s=60)
        seconds.append(time.perf_counter() - started)
        private.append(rollup_bytes(worker.pid, "Private_Dirty", "Private_Clean") - 4 * 100 * 101)
        worker.close()
    seconds.sort()
    yield Row("fork to first answer, median", 1e3 * statistics.median(seconds), "ms", 15)
    yield Row("fork to first answer, p99", 1e3 * seconds[int(0.99 * (num - 1))], "ms", 50)
    yield Row("private memory of a worker beyond its weights, median", statistics.median(private) / MIB, "MiB", 12)


def deadlines(zygote: ZygoteProcess, num: int) -> Iterator[Row]:
    """How long after its wall clock a busy worker is gone."""
    late = []
    for _ in range(num):
        wall_s = 0.8
        # Few layers, which are made in no time, and many rows: seconds of work on any processor of today.
        worker = zygote.fork(linear(1024, layers_=16, rows=8192, memory_bytes=1024 * MIB, wall_s=wall_s))
        content = zeros(8192, 1024)
        # Copying the content in, 32 MiB of it, is counted as late, too.
        started = time.perf_counter()
        with suppress(PNodeError):
            worker.call("forward", {}, [content], deadline_s=None)
        assert worker.exit_reason is not None, "the forward was faster than its limit"
        late.append(time.perf_counter() - started - wall_s)
        worker.close()
    yield Row("killed after a deadline, worst", 1e3 * max(late), "ms", 100)


def breaches(zygote: ZygoteProcess) -> Iterator[Row]:
    """How far the host's free memory falls while a worker runs into its limit."""
    limit = 512 * MIB
    worker = zygote.fork(linear(64, layers_=200, rows=16384, memory_bytes=limit))
    label = TensorBytes("label", tensor_pb2.DTYPE_I64, (16384,), bytes(8 * 16384))
    least, done = [psutil.virtual_memory().available] * 2, threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            least[1] = min(least[1], psutil.virtual_memory().available)

    watching = threading.Thread(target=watch)
    watching.start()
    fields = {"step": 0, "microbatch": 0, "batch_rows": 16384, "num_inputs": 1}
    with suppress(PNodeError):
        worker.call("begin", fields, [zeros(16384, 64), label], deadline_s=None)
    done.set()
    watching.join()
    assert worker.exit_reason is not None
    assert worker.exit_reason.kind == "memory", worker.exit_reason
    yield Row("free memory lost to a breach of 512 MiB", (least[0] - least[1]) / MIB, "MiB", limit / MIB)
    worker.close()


def layers_cost(boxed: ZygoteProcess, num: int) -> Iterator[Row]:
    """A Forward of 1 MiB with the layers and without them, by turns."""
    with ZygoteProcess.start(deadline_s=START_S, offered=()) as bare_zygote:
        spec = linear(256, rows=1024)
        pair = [zygote.fork(spec) for zygote in (boxed, bare_zygote)]
        content = zeros(1024, 256)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(num):
            for worker, kept in zip(pair, times, strict=True):
                started = time.perf_counter()
                worker.call("forward", {}, [content], deadline_s=60)
                kept.append(time.perf_counter() - started)
        for worker in pair:
            worker.close()
    with_layers, without = (statistics.median(kept[num // 10 :]) for kept in times)
    yield Row("forward of 1 MiB in the box", 1e3 * with_layers, "ms")
    yield Row("cost of the layers on it", 100 * (with_layers / without - 1), "%", 5)


@contextmanager
def serving(folder: Path, max_vnodes: int) -> Iterator[tuple[Node, ChannelPool]]:
    """A PNode in this process, which serves without an orchestrator."""
    settings = NodeSettings(
        orchestrator_address="127.0.0.1:9", data_dir=folder, port=0, max_vnodes=max_vnodes, start_s=START_S,
        vnode_memory_bytes=4096 * MIB,
    )  # fmt: skip
    node = Node(settings, LocalStore(folder / "store"), guard=OpenGuard())
    try:
        node.start()
        with ChannelPool() as pool:
            yield node, pool
    finally:
        node.close()


def many(num: int, num_called: int, num_clients: int) -> Iterator[Row]:
    """Many small VNodes on one PNode, and some of them served in parallel over gRPC."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), num) as (node, pool):
        fences = [vnode_pb2.Fence(run="bench", vnode=f"v{index}", generation=1, epoch=1) for index in range(num)]
        control, peer = RemoteNode(pool, node.address), RemoteVNode(pool, node.address)
        for fence in fences:
            spec = linear(100, memory_bytes=20 * MIB, name=fence.vnode)
            control.allocate(node_pb2.AllocateRequest(spec=spec, fence=fence), Deadline.after(10))
        content = zeros(8, 100)

        def forward(fence: vnode_pb2.Fence) -> None:
            request = Parcel(vnode_pb2.ForwardRequest(fence=fence, inputs=metas([content])), [content.payload])
            peer.forward(request, Deadline.after(60))

        for fence in fences:
            forward(fence)
        pids = [child.pid for child in psutil.Process(node._zygote.pid).children()]
        assert len(pids) == num
        resident = sum(rollup_bytes(pid, "Pss:") for pid in pids)
        started = time.perf_counter()
        with ThreadPoolExecutor(num_clients) as clients:
            errors = [each.exception() for each in [clients.submit(forward, f) for f in fences[:num_called] * 10]]
        seconds = time.perf_counter() - started
    yield Row(f"memory of {num} VNodes of 10 k parameters", resident / MIB, "MiB", 4096)
    yield Row(
        f"errors of {num_clients} clients on {num_called} VNodes", sum(each is not None for each in errors), "", 0
    )
    yield Row("calls a second of these clients", num_called * 10 / seconds, "1/s")


def rows(quick: bool) -> Iterator[Row]:
    """Every figure."""
    with ZygoteProcess.start(deadline_s=START_S) as zygote:
        yield from forks(zygote, 20 if quick else 200)
        yield from deadlines(zygote, 2 if quick else 10)
        yield from breaches(zygote)
        yield from layers_cost(zygote, 50 if quick else 1000)
    yield from many(20 if quick else 200, 8 if quick else 64, 8)


def main(arguments: list[str] | None = None, show: Callable[[str], None] = print) -> int:
    """Print the table; 1 where a figure is not what it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    limits.raise_num_files()
    show(f"layers: {', '.join(layers.found()) or 'none'}")
    found = []
    for row in rows(given.quick):
        found.append(row)
        show(str(row))
    if given.json is not None:
        table.write(given.json, found, {**table.machine(), "layers": layers.found()})
    return table.exit_code(found)


if __name__ == "__main__":
    sys.exit(main())
