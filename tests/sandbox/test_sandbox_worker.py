"""A worker in its box: what it has, what it answers, and that it lives on after a caller's mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sandbox_specs import linear_spec
from sandbox_world import Exits, hostile

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
    assert about["stdin"] == "/dev/null"
    assert about["session"] == worker.pid
    assert about["parent"] == hostile_zygote.pid
    assert (about["no_new_privs"], about["dumpable"], about["blocked"]) == (1, 0, 0)
    assert about["sigint_ignored"]
    assert (about["core"], about["fsize"], about["nproc"]) == (0, 0, 0)
    assert about["nofile"] <= 64


def test_no_secret_reaches_it(monkeypatch: pytest.MonkeyPatch, spec: spec_pb2.VNodeSpec) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("PNODE_TOKEN", "hidden")
    with ZygoteProcess.start(program=hostile(), deadline_s=20) as zygote:
        names = json.loads(zygote.fork(spec).call("about", deadline_s=10).fields["environment"])
    assert not {"AWS_SECRET_ACCESS_KEY", "PNODE_TOKEN"} & set(names)
    assert {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"} <= set(names)


def test_it_cannot_write_its_inbox(worker: WorkerProcess) -> None:
    found = worker.call("write_inbox", deadline_s=10).fields
    assert found == {"writable": False, "protection": "r--s"}


def test_it_cannot_write_files(worker: WorkerProcess, tmp_path: Path) -> None:
    assert worker.call("write_file", {"path": str(tmp_path / "x")}, deadline_s=10).fields["errno"] != 0


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
    first = worker.call("about", deadline_s=10).fields["cpu"]
    worker.call("burn", {"cpu_s": 1.2}, deadline_s=10)
    assert worker.call("about", deadline_s=10).fields["cpu"] > first


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
