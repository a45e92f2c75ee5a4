"""A worker in its box: what it has, what it answers, and that it lives on after a caller's mistake."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sandbox_specs import linear_spec
from sandbox_world import Exits, hostile, outside

from pnode.errors import BadRequest, BlobCorrupt, DeadlineExceeded, SpecError, StepMismatch, TooLarge, WorkerLost
from pnode.sandbox.supervisor import WorkerProcess, ZygoteProcess
from pnode.v1 import spec_pb2
from pnode.v1.tensor_pb2 import DTYPE_F32, DTYPE_U8
from pnode.vnode.tensors import TensorBytes


def test_a_command_is_answered(worker: WorkerProcess) -> None:
    fields = {"a": 1, "b": 0.1, "c": "ä\n", "d": None, "e": True, "loss": float("inf")}
    tensors = [TensorBytes("x", DTYPE_F32, (2, 1), b"12345678"), TensorBytes("é", DTYPE_U8, (0,), b"")]
    for _ in range(3):
        reply = worker.call("echo", fields, tensors, deadline_s=10)
        assert reply.fields == fields
        assert reply.tensors == tensors
        assert all(isinstance(tensor.payload, bytes) for tensor in reply.tensors)
    assert worker.alive
    assert worker.exit_reason is None


def test_it_has_nothing_but_what_it_needs(worker: WorkerProcess, hostile_zygote: ZygoteProcess) -> None:
    about = worker.call("about", deadline_s=10).fields
    assert len(json.loads(about["fds"])) == 6  # the standard streams, its socket, two arenas (their mappings keep one)
    assert json.loads(about["environment"]) == ["CUDA_VISIBLE_DEVICES"]
    assert os.getsid(worker.pid or 0) == worker.pid
    status = outside(worker.pid)
    assert int(status["PPid"]) == hostile_zygote.pid
    assert (status["NoNewPrivs"], status["SigBlk"].strip("0"), status["Threads"]) == ("1", "", "1")
    assert int(status["SigIgn"], 16) >> (signal.SIGINT - 1) & 1
    assert limit(worker, "Max open files")[1] <= 64
    assert limit(worker, "Max processes")[1] <= 1
    assert limit(worker, "Max address space")[1] < 1 << 40
    assert limit(worker, "Max core file size") == limit(worker, "Max file size") == (0, 0)


def limit(worker: WorkerProcess, name: str) -> tuple[int, int]:
    """The soft and the hard one."""
    for line in Path(f"/proc/{worker.pid}/limits").read_text().splitlines():
        if line.startswith(name):
            soft, hard = (1 << 63 if word == "unlimited" else int(word) for word in line[26:].split()[:2])
            return soft, hard
    raise AssertionError(f"no limit {name}")


def test_no_secret_reaches_the_zygote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("PNODE_TOKEN", "hidden")
    with ZygoteProcess.start(program=hostile(), deadline_s=20) as zygote:
        names = {line.partition(b"=")[0] for line in Path(f"/proc/{zygote.pid}/environ").read_bytes().split(b"\0")}
    assert not {b"AWS_SECRET_ACCESS_KEY", b"PNODE_TOKEN"} & names
    assert {b"OMP_NUM_THREADS", b"MKL_NUM_THREADS", b"CUBLAS_WORKSPACE_CONFIG"} <= names


def test_it_cannot_write_its_inbox(worker: WorkerProcess) -> None:
    found = worker.call("write_inbox", {}, [TensorBytes("x", DTYPE_U8, (1,), b"x")], deadline_s=10).fields
    assert found == {"writable": False, "errno": errno.EACCES}


def test_what_it_says_is_kept_and_bounded(
    worker: WorkerProcess, exits: Exits, caplog: pytest.LogCaptureFixture
) -> None:
    said = worker.call("say", {"text": "spam\x1b[2J"}, deadline_s=10).fields["said"]
    assert 0 < said <= 1 << 16
    worker.kill("a test")
    exits.wait()
    worker.close()
    assert "spam?[2J" in caplog.text


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("BAD_REQUEST", BadRequest),
        ("BAD_SPEC", SpecError),
        ("STEP_MISMATCH", StepMismatch),
        ("BLOB_CORRUPT", BlobCorrupt),
    ],
)
def test_it_lives_on_after_a_callers_mistake(worker: WorkerProcess, reason: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as refusal:
        worker.call("refuse", {"reason": reason}, deadline_s=10)
    assert type(refusal.value) is kind
    assert worker.call("echo", {"a": 1}, deadline_s=10).fields == {"a": 1}


def test_requests_that_cannot_be_sent_cost_nothing(worker: WorkerProcess) -> None:
    with pytest.raises(TooLarge):
        worker.call("echo", {}, [TensorBytes("x", DTYPE_U8, (1 << 20,), bytes(1 << 20))], deadline_s=10)
    with pytest.raises(BadRequest):
        worker.call("echo", {"a": "x" * 100_000}, deadline_s=10)
    with pytest.raises(BadRequest):
        worker.call("echo", {}, [TensorBytes("x", DTYPE_F32, (3,), b"1234")], deadline_s=10)
    assert worker.call("echo", {"a": 1}, deadline_s=10).fields == {"a": 1}


def test_a_short_deadline_waits_no_longer_for_its_turn_and_kills_nobody(worker: WorkerProcess) -> None:
    burning = threading.Thread(target=lambda: worker.call("burn", {"cpu_s": 0.5}, deadline_s=None))
    burning.start()
    while not worker._turns._taken:
        burning.join(0.001)
    with pytest.raises(DeadlineExceeded):
        worker.call("echo", deadline_s=0.01)
    # A deadline that passes while the command runs does not end it either.
    assert worker.call("burn", {"cpu_s": 0.2}, deadline_s=20).fields == {}
    burning.join(20)
    assert worker.alive


def test_the_processor_limit_is_moved_by_every_command(worker: WorkerProcess) -> None:
    worker.call("echo", deadline_s=10)
    first = _soft_cpu(worker)
    worker.call("burn", {"cpu_s": 1.2}, deadline_s=10)
    worker.call("echo", deadline_s=10)
    assert _soft_cpu(worker) > first


def _soft_cpu(worker: WorkerProcess) -> int:
    return limit(worker, "Max cpu time")[0]


def test_commands_of_many_threads_do_not_mix(worker: WorkerProcess) -> None:
    wrong: list[object] = []

    def ask(number: int) -> None:
        payload = bytes([number]) * 400
        for _ in range(50):
            reply = worker.call("echo", {"n": number}, [TensorBytes("x", DTYPE_U8, (400,), payload)], deadline_s=20)
            if reply.fields != {"n": number} or reply.tensors[0].payload != payload:
                wrong.append(reply)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_a_bad_spec_is_refused_and_leaves_no_process(hostile_zygote: ZygoteProcess, exits: Exits) -> None:
    with pytest.raises(SpecError):
        hostile_zygote.fork(_named("bad"), on_exit=exits)
    with pytest.raises(WorkerLost, match="code 9"):
        hostile_zygote.fork(_named("dies"), on_exit=exits)
    # Whoever got an exception is not told a second time.
    assert exits.seen == []
    assert _children(hostile_zygote) == []


def test_a_closed_worker_is_gone_without_a_report(
    hostile_zygote: ZygoteProcess, spec: spec_pb2.VNodeSpec, exits: Exits
) -> None:
    worker = hostile_zygote.fork(spec, on_exit=exits)
    worker.close()
    worker.close()
    assert not worker.alive
    assert worker.exit_reason is not None
    assert worker.exit_reason.kind == "killed"
    with pytest.raises(WorkerLost):
        worker.call("echo", deadline_s=1)
    assert exits.seen == []


def _named(name: str) -> spec_pb2.VNodeSpec:
    spec = linear_spec()
    spec.id = name
    return spec


def _children(zygote: ZygoteProcess) -> list[str]:
    return Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text().split()


def test_the_front_needs_no_torch() -> None:
    heavy = "{'torch', 'samebits', 'grpc', 'numba'}"
    code = f"import sys, pnode.sandbox.supervisor; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"
