"""A model trained in a chain of three PNodes against the same model uncut in one process, on the same machine.

The one process computes with both cores and takes a batch whole, which is its fastest way. The chain's three workers
have a thread each on the same two cores, and take a batch in microbatches; orchestrator, fronts and driver come on top.
Both end at the same bits, which is checked. The one process is timed before the chain and after it.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import psutil

from benchmarks.rows import Row
from benchmarks.rpc.network import Network, network
from benchmarks.rpc.registry import group
from pnode.client import events
from pnode.client.batch import Batch, from_array
from pnode.client.cut import Plan, cut
from pnode.client.driver import Driver, DriverSettings
from pnode.client.model import transformer_classifier
from pnode.v1 import orchestrator_pb2, spec_pb2
from pnode.vnode.tensors import TensorBytes

STAGES = 3
# Steps that warm up come first: workers are forked and caches filled by them.
_WARM_UP = 3


@dataclass(frozen=True)
class Shape:
    """A transformer classifier and how it is trained. `features` 128 is the model of job=digits."""

    name: str
    features: int
    tokens: int
    blocks: int
    rows: int
    microbatches: int
    steps: int

    def specs(self, run: str, stages: int) -> list[spec_pb2.VNodeSpec]:
        """The model in so many VNodes."""
        model = transformer_classifier(
            tokens=self.tokens, in_features=16, features=self.features, num_blocks=self.blocks, num_heads=4, mlp=4,
            classes=10,
        )  # fmt: skip
        adamw = spec_pb2.AdamW(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)
        limits = spec_pb2.Limits(memory_bytes=2 << 30, cpu_s=60, wall_s=60, max_rows=self.rows)
        optimizer = spec_pb2.Optimizer(adamw=adamw)
        plan = Plan(run=run, seed=1, optimizer=optimizer, limits=limits, window=self.microbatches)
        return cut(model, plan, stages=stages)

    def batch(self, step: int) -> Batch:
        """Random rows, a pure function of the step."""
        rng = np.random.default_rng(step)
        x = rng.standard_normal((self.rows, self.tokens, 16)).astype(np.float32)
        return Batch((from_array("tokens", x),), (from_array("label", rng.integers(0, 10, self.rows)),))


SHAPES = (
    Shape("256 features, 32 tokens, 6 blocks", features=256, tokens=32, blocks=6, rows=64, microbatches=4, steps=20),
    Shape("job=digits", features=128, tokens=9, blocks=3, rows=64, microbatches=4, steps=60),
)


@group("chain")
def chain(quick: bool) -> Iterator[Row]:
    """Samples a second of both, their ratio, and what share of the time each stage's worker computed."""
    for shape in SHAPES:
        steps = _WARM_UP + (shape.steps // 4 if quick else shape.steps)
        before, digest = _in_a_process(shape, steps)
        with network(STAGES) as net:
            through, found, shares = _through(net, shape, steps)
        after, _ = _in_a_process(shape, steps)
        if digest != found:
            raise AssertionError(f"{shape.name}: the chain ended at other bits")
        alone, seconds = statistics.median([*before, *after]), statistics.median(through)
        yield Row(f"one process, 2 threads, {shape.name}", shape.rows / alone, "/s")
        yield Row(f"chain, {STAGES} x 1 thread, {shape.name}", shape.rows / seconds, "/s")
        for stage, share in enumerate(shares, 1):
            yield Row(f"stage {stage} computes, {shape.name}", 100 * share, "%")
        # The tiny one informs: no user cuts a model whose step takes 28 ms.
        bounds = {"least": 0.75, "aim": 0.9} if shape is SHAPES[0] else {}
        yield Row(f"chain against one process, {shape.name}", alone / seconds, "x", **bounds)


def _in_a_process(shape: Shape, steps: int) -> tuple[list[float], str]:
    """The seconds of each step, and a digest at the end, in a process without any network."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_alone, args=(theirs, shape, steps))
    process.start()
    try:
        seconds, digest = ours.recv()
        return list(seconds), str(digest)
    finally:
        process.join(30)
        process.kill()


def _alone(reply: Connection, shape: Shape, steps: int) -> None:
    from pnode.client.local import LocalRun  # brings torch, which the driver's process does without

    run = LocalRun(shape.specs("alone", 1), num_threads=os.cpu_count() or 1)
    ends = []
    for step in range(steps):
        run.step(step, shape.batch(step))
        ends.append(time.perf_counter())
    reply.send((_steps(ends), _logits(run.forward, shape)))


def _through(net: Network, shape: Shape, steps: int) -> tuple[list[float], str, list[float]]:
    """The same through the chain, and the share of the time in which each worker used a processor."""
    run = orchestrator_pb2.RunSpec(id="chain", vnodes=shape.specs("chain", STAGES))
    settings = DriverSettings(steps=steps, num_microbatches=shape.microbatches)
    ends: list[float] = []
    used: list[list[float]] = []

    def heard(event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            ends.append(time.perf_counter())
            if len(ends) in (_WARM_UP, steps):
                used.append([_worker_cpu_s(node.pid) for node in net.nodes])

    with Driver(
        run, settings, shape.batch, runs=net.runs, orchestrator=net.orchestrator, vnodes=net.vnodes, on_event=heard
    ) as driver:
        driver.train()
        logits = _logits(driver.forward, shape)
    wall = ends[-1] - ends[_WARM_UP - 1]
    return _steps(ends), logits, [(last - first) / wall for first, last in zip(*used, strict=True)]


def _steps(ends: list[float]) -> list[float]:
    """The seconds of each step after those that warm up."""
    return [after - before for before, after in itertools.pairwise(ends[_WARM_UP - 1 :])]


def _worker_cpu_s(node_pid: int) -> float:
    """Processor seconds of the zygote's children of a node: its workers."""
    zygotes = [child for child in psutil.Process(node_pid).children() if "pnode.sandbox.zygote" in child.cmdline()]
    return sum(sum(worker.cpu_times()[:2]) for zygote in zygotes for worker in zygote.children())


def _logits(forward: Callable[[Batch], Sequence[TensorBytes]], shape: Shape) -> str:
    """A digest of what the trained model gives for some rows."""
    (logits,) = forward(shape.batch(0))
    return hashlib.sha256(logits.payload).hexdigest()
