"""Real VNodes in real workers: the same bits as in one process, and real work stopped by real limits."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from samebits import selftest
from sandbox_specs import MIB, linear_spec
from sandbox_world import DEADLINE_S, Exits

from pnode.errors import BadRequest, BlobCorrupt, LimitBreach, PNodeError, StepMismatch, WallClockBreach, WorkerLost
from pnode.sandbox.supervisor import WorkerProcess, ZygoteProcess
from pnode.v1 import spec_pb2
from pnode.v1.tensor_pb2 import DTYPE_F32, DTYPE_I64, DTYPE_U8
from pnode.vnode import sizes
from pnode.vnode.tensors import TensorBytes

# A cold kernel cache takes a minute, and longer where other tests run beside.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def zygote() -> Iterator[ZygoteProcess]:
    with ZygoteProcess.start(deadline_s=500) as started:
        yield started


@pytest.fixture
def stage(zygote: ZygoteProcess, exits: Exits) -> Iterator[WorkerProcess]:
    forked = zygote.fork(linear_spec(), on_exit=exits)
    yield forked
    forked.close()


def batch(rows: int = 4, features: int = 16) -> list[TensorBytes]:
    """Inputs and targets that differ everywhere."""
    values = [((17 * index) % 31 - 15) / 8 for index in range(rows * features)]
    labels = [(5 * row) % features for row in range(rows)]
    return [
        TensorBytes("x", DTYPE_F32, (rows, features), struct.pack(f"<{rows * features}f", *values)),
        TensorBytes("label", DTYPE_I64, (rows,), struct.pack(f"<{rows}q", *labels)),
    ]


def train(worker: WorkerProcess, steps: int = 2) -> list[object]:
    """Steps of two microbatches each; everything that came back."""
    seen: list[object] = []
    for step in range(steps):
        for index in range(2):
            key = {"step": step, "microbatch": index}
            worker.call("begin", {**key, "batch_rows": 8, "num_inputs": 1}, batch(), deadline_s=10)
            finished = worker.call("finish", {**key, "want_input_gradients": True}, deadline_s=10)
            seen += [finished.fields, finished.tensors]
        seen.append(worker.call("apply", {"step": step, "num_microbatches": 2}, deadline_s=10).fields)
    return seen


def state(worker: WorkerProcess) -> bytes:
    (tensor,) = worker.call("state", deadline_s=10).tensors
    return bytes(tensor.payload)


def test_a_worker_gives_the_bits_of_a_stage_in_this_process(stage: WorkerProcess) -> None:
    from pnode.vnode.stage import Stage
    from pnode.vnode.torch_tensors import to_torch

    here = Stage(linear_spec())
    x, label = batch()
    assert stage.call("describe", deadline_s=10).fields == {
        "version": 0, "accumulated": 0, "numerics_class": "samebits-1",
    }  # fmt: skip
    assert state(stage) == here.state()
    (output,) = stage.call("forward", {}, [x], deadline_s=10).tensors
    (expected,) = here.forward({"x": to_torch(x)}).values()
    assert bytes(output.payload) == expected.numpy().tobytes()
    train(stage)
    for step in range(2):
        for index in range(2):
            here.begin(step, index, 8, {"x": to_torch(x)}, {"label": to_torch(label)})
            here.finish(step, index, {}, want_input_gradients=False)
        here.apply(step, 2)
    assert state(stage) == here.state()


def test_two_threads_and_another_process_give_the_same_bits(zygote: ZygoteProcess, stage: WorkerProcess) -> None:
    seen = train(stage)
    for num_threads in (1, 2):
        other = zygote.fork(linear_spec(), num_threads=num_threads)
        assert train(other) == seen
        assert state(other) == state(stage)
        other.close()


def test_a_state_moves_to_another_worker(zygote: ZygoteProcess, stage: WorkerProcess) -> None:
    train(stage)
    record = state(stage)
    other = zygote.fork(linear_spec())
    restored = other.call(
        "restore", {"version": 2}, [TensorBytes("state", DTYPE_U8, (len(record),), record)], deadline_s=10
    )
    assert restored.fields["version"] == 2
    assert state(other) == record
    assert other.call("restore", deadline_s=10).fields["version"] == 0
    other.close()


def test_a_callers_mistake_costs_nothing(stage: WorkerProcess) -> None:
    x, label = batch()
    good: dict[str, object] = {"step": 0, "microbatch": 0, "batch_rows": 4, "num_inputs": 1}
    mistakes: list[tuple[type[PNodeError], str, dict[str, object], list[TensorBytes]]] = [
        (BadRequest, "begin", {**good, "step": "0"}, [x, label]),
        (BadRequest, "begin", {"step": 0}, [x, label]),
        (BadRequest, "begin", good, [x, label._replace(payload=b"\xff" * 32)]),
        (BadRequest, "no such command", {}, []),
        (BadRequest, "__init__", {}, []),
        (StepMismatch, "begin", {**good, "step": 7}, [x, label]),
        (StepMismatch, "finish", {"step": 0, "microbatch": 3}, []),
        (StepMismatch, "apply", {"step": 0, "num_microbatches": 1}, []),
        (BlobCorrupt, "restore", {"version": 1}, [TensorBytes("state", DTYPE_U8, (5,), b"hello")]),
    ]
    before = state(stage)
    for kind, command, fields, tensors in mistakes:
        with pytest.raises(kind):
            stage.call(command, fields, tensors, deadline_s=10)
    assert state(stage) == before
    assert stage.alive


def test_a_discarded_microbatch_may_begin_again(stage: WorkerProcess) -> None:
    key = {"step": 0, "microbatch": 0}
    for _ in range(2):
        stage.call("begin", {**key, "batch_rows": 4, "num_inputs": 1}, batch(), deadline_s=10)
        stage.call("discard", {"microbatch": 0}, deadline_s=10)
    with pytest.raises(StepMismatch):
        stage.call("finish", key, deadline_s=10)


def test_the_profile_torch_runs_in_a_worker(zygote: ZygoteProcess) -> None:
    worker = zygote.fork(linear_spec(profile="torch"))
    about = worker.call("describe", deadline_s=10).fields
    assert about["numerics_class"].startswith("torch/")
    assert about["numerics_class"] in zygote.probe()["numerics_classes"]
    first = train(worker)
    worker.close()
    again = zygote.fork(linear_spec(profile="torch"))
    assert train(again) == first
    again.close()


def test_a_worker_killed_at_work_is_lost_and_others_serve_on(
    zygote: ZygoteProcess, exits: Exits, stage: WorkerProcess
) -> None:
    ends = Exits()
    busy = zygote.fork(_heavy(), on_exit=ends)
    lost: list[PNodeError] = []

    def work() -> None:
        try:
            busy.call("forward", {}, [_heavy_input()], deadline_s=None)
        except PNodeError as error:
            lost.append(error)

    working = threading.Thread(target=work)
    working.start()
    assert busy.pid is not None
    _await_cpu(busy.pid, 0.5)
    assert stage.call("forward", {}, batch()[:1], deadline_s=10).tensors
    killed = time.monotonic()
    os.kill(busy.pid, signal.SIGKILL)
    (verdict,) = ends.wait()
    assert time.monotonic() - killed < 5
    working.join(DEADLINE_S)
    assert isinstance(lost[0], WorkerLost)
    assert verdict.kind == "signal"
    assert train(stage)
    busy.close()


def test_wall_clock_of_real_work(zygote: ZygoteProcess, exits: Exits) -> None:
    worker = zygote.fork(_heavy(wall_s=2.0), on_exit=exits)
    started = time.monotonic()
    with pytest.raises(WallClockBreach, match="2 s of wall clock in 'forward'"):
        worker.call("forward", {}, [_heavy_input()], deadline_s=None)
    assert time.monotonic() - started < 10
    assert exits.wait()[0].kind == "wall_clock"
    worker.close()


def test_processor_time_of_real_work(zygote: ZygoteProcess, exits: Exits) -> None:
    worker = zygote.fork(_heavy(cpu_s=0.5), on_exit=exits)
    with pytest.raises(LimitBreach, match="processor time"):
        worker.call("forward", {}, [_heavy_input()], deadline_s=None)
    (verdict,) = exits.wait()
    assert verdict.kind == "cpu"
    assert verdict.figures["cpu_s"] < 5
    worker.close()


def test_memory_of_real_work(zygote: ZygoteProcess, exits: Exits, stage: WorkerProcess) -> None:
    spec = linear_spec(features=64, layers=48, max_rows=8192)
    spec.limits.memory_bytes = sizes.least_memory_bytes(spec) + 24 * MIB
    worker = zygote.fork(spec, on_exit=exits)
    assert worker.call("forward", {}, batch(4, 64)[:1], deadline_s=30).tensors
    fields = {"step": 0, "microbatch": 0, "batch_rows": 8192, "num_inputs": 1}
    with pytest.raises(LimitBreach, match="memory"):
        worker.call("begin", fields, batch(8192, 64), deadline_s=None)
    (verdict,) = exits.wait()
    assert (verdict.kind, verdict.figures["limit_bytes"]) == ("memory", spec.limits.memory_bytes)
    assert train(stage)
    worker.close()


def test_a_vnode_that_cannot_be_created_in_its_memory_is_refused(zygote: ZygoteProcess) -> None:
    spec = linear_spec(features=1024, layers=8)
    spec.limits.memory_bytes = 8 * MIB
    with pytest.raises(LimitBreach, match=str(8 * MIB)):
        zygote.fork(spec)


def test_the_probe_tells_what_torch_finds(zygote: ZygoteProcess) -> None:
    probed = zygote.probe()
    assert {"torch", "numba", "numpy", "samebits"} <= set(probed["versions"])
    assert isinstance(probed["gpus"], list)
    assert probed["numerics_classes"][0] == "samebits-1"
    assert probed["numerics_classes"][1].startswith("torch/")
    assert probed["samebits"] == {"digest": selftest.golden().digest, "differing": []}


def test_a_loaded_zygote_has_one_thread_and_no_gpu(zygote: ZygoteProcess) -> None:
    assert len(os.listdir(f"/proc/{zygote.pid}/task")) == 1
    maps = Path(f"/proc/{zygote.pid}/maps").read_text()
    assert "libtorch" in maps
    assert "nvidia" not in "".join(line for line in maps.splitlines() if "/dev/" in line)


def _heavy(**limits: float) -> spec_pb2.VNodeSpec:
    """Some seconds of work in one forward, at the least."""
    return linear_spec(features=1024, layers=4, max_rows=65536, memory_bytes=8192 * MIB, **limits)  # type: ignore[arg-type]


def _heavy_input() -> TensorBytes:
    return TensorBytes("x", DTYPE_F32, (65536, 1024), bytes(65536 * 1024 * 4))


def _await_cpu(pid: int, cpu_s: float) -> None:
    """Wait until the process has used so much processor time: it is at work."""
    ends = time.monotonic() + DEADLINE_S
    ticks = os.sysconf("SC_CLK_TCK")
    waiting = threading.Event()
    while time.monotonic() < ends:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if (int(fields[11]) + int(fields[12])) / ticks >= cpu_s:
            return
        waiting.wait(0.01)
    raise AssertionError("the worker never began")
