"""Workers that end badly: each way has its verdict, is told once and at once, and others keep serving."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from sandbox_specs import MIB, linear_spec
from sandbox_world import DEADLINE_S, Exits, open_fds

from pnode.errors import LimitBreach, PNodeError, WallClockBreach, WorkerLost
from pnode.sandbox import frames
from pnode.sandbox.supervisor import WorkerProcess, ZygoteProcess
from pnode.v1 import spec_pb2

# What a test sends comes as the second answer; the first is that to `create`.
NEXT, LATER = (number.to_bytes(8, "little") for number in (2, 99))


def test_a_worker_killed_while_idle_is_told_at_once(
    hostile_zygote: ZygoteProcess, spec: spec_pb2.VNodeSpec, exits: Exits, worker: WorkerProcess
) -> None:
    other = hostile_zygote.fork(spec)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    (verdict,) = exits.wait()
    assert verdict.kind == "signal"
    assert verdict.reason == "WORKER_LOST"
    assert verdict.figures["signal"] == signal.SIGKILL
    assert exits.seen[0][0] is worker
    assert not worker.alive
    with pytest.raises(WorkerLost, match="SIGKILL"):
        worker.call("echo", deadline_s=1)
    assert other.call("echo", {"a": 1}, deadline_s=10).fields == {"a": 1}
    other.close()


def test_a_worker_killed_in_a_command_fails_that_call(worker: WorkerProcess, exits: Exits) -> None:
    with pytest.raises(WorkerLost, match="SIGSEGV"):
        worker.call("kill_self", {"signal": signal.SIGSEGV}, deadline_s=None)
    (verdict,) = exits.wait()
    assert (verdict.kind, verdict.figures["signal"]) == ("signal", signal.SIGSEGV)


def test_an_exit_code_is_reported(worker: WorkerProcess, exits: Exits) -> None:
    with pytest.raises(WorkerLost, match="code 7"):
        worker.call("leave", {"code": 7}, deadline_s=None)
    (verdict,) = exits.wait()
    assert (verdict.kind, verdict.figures["code"]) == ("exit", 7)


def test_our_own_kill_is_named(worker: WorkerProcess, exits: Exits) -> None:
    failed: list[PNodeError] = []

    def call() -> None:
        try:
            worker.call("hang", deadline_s=None)
        except PNodeError as error:
            failed.append(error)

    calling = threading.Thread(target=call)
    calling.start()
    worker.kill("memory pressure on this machine")
    (verdict,) = exits.wait()
    calling.join(DEADLINE_S)
    assert verdict.kind == "killed"
    assert "memory pressure" in verdict.message
    assert "memory pressure" in failed[0].message


def test_wall_clock(hostile_zygote: ZygoteProcess, exits: Exits) -> None:
    worker = hostile_zygote.fork(linear_spec(wall_s=0.2), on_exit=exits)
    assert worker.call("echo", {"a": 1}, deadline_s=1).fields == {"a": 1}
    started = time.monotonic()
    with pytest.raises(WallClockBreach, match=r"0\.2 s"):
        worker.call("hang", deadline_s=None)
    assert 0.2 <= time.monotonic() - started < 2
    (verdict,) = exits.wait()
    assert (verdict.kind, verdict.reason, verdict.figures["limit_s"]) == ("wall_clock", "WALL_CLOCK_BREACH", 0.2)
    with pytest.raises(WorkerLost):
        worker.call("echo", deadline_s=1)


def test_wall_clock_while_it_is_created(hostile_zygote: ZygoteProcess) -> None:
    spec = linear_spec(wall_s=0.2)
    spec.id = "hangs"
    with pytest.raises(WallClockBreach):
        hostile_zygote.fork(spec)


def test_processor_time(hostile_zygote: ZygoteProcess, exits: Exits) -> None:
    worker = hostile_zygote.fork(linear_spec(cpu_s=0.5), on_exit=exits)
    with pytest.raises(LimitBreach, match=r"0\.5 s of processor time"):
        worker.call("spin", deadline_s=None)
    (verdict,) = exits.wait()
    assert (verdict.kind, verdict.reason, verdict.figures["limit_s"]) == ("cpu", "LIMIT_BREACH", 0.5)
    assert 0.5 <= verdict.figures["cpu_s"] < 3


def test_memory(hostile_zygote: ZygoteProcess, exits: Exits) -> None:
    worker = hostile_zygote.fork(linear_spec(memory_bytes=64 * MIB), on_exit=exits)
    with pytest.raises(LimitBreach, match=rf"memory.*limit_bytes {64 * MIB}, max_rss_bytes \d+"):
        worker.call("eat", deadline_s=None)
    (verdict,) = exits.wait()
    assert (verdict.kind, verdict.reason, verdict.figures["limit_bytes"]) == ("memory", "LIMIT_BREACH", 64 * MIB)
    assert verdict.figures["max_rss_bytes"] < 200 * MIB


def test_an_allocators_words_are_a_memory_breach(worker: WorkerProcess, exits: Exits) -> None:
    with pytest.raises(LimitBreach, match="99 bytes"):
        worker.call("say_out_of_memory", deadline_s=None)
    assert exits.wait()[0].kind == "memory"


def test_an_unexpected_exception_ends_it_and_leaks_no_text(
    worker: WorkerProcess, exits: Exits, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WorkerLost, match="RuntimeError") as failure:
        worker.call("fault", deadline_s=None)
    assert "secret" not in failure.value.message
    assert "secret" in caplog.text
    assert exits.wait()[0].kind == "exit"


# Broken protocol


@pytest.mark.parametrize(
    "raw",
    [
        b"short",
        LATER + b'{"fields":{},"tensors":[]}',
        NEXT + b"garbage",
        NEXT + b"\xff\xfe\x00",
        NEXT + b"{}",
        NEXT + b'{"fields":{},"tensors":[]',
        NEXT + b'{"tensors":[]}',
        NEXT + b'{"fields":[],"tensors":[]}',
        NEXT + b'{"fields":{"a":[1]},"tensors":[]}',
        NEXT + b'{"fields":{},"tensors":[["x",1,[1],4611686018427387900]]}',
        NEXT + b'{"fields":{},"tensors":[["x",1,[1],-64]]}',
        NEXT + b'{"fields":{},"tensors":[["x",1,[1000000000],0]]}',
        NEXT + b'{"fields":{},"tensors":[["x",1,[65536,65536,65536,65536,65536],0]]}',
        NEXT + b'{"error":{"reason":"CONFIG","message":"x"}}',
        NEXT + b'{"error":{"reason":"BAD_SPEC","message":"x"}}',
        NEXT + b'{"error":"x"}',
    ],
)
def test_a_reply_that_breaks_the_rules_costs_the_worker(worker: WorkerProcess, exits: Exits, raw: bytes) -> None:
    with pytest.raises(WorkerLost, match="protocol"):
        worker.call("send_raw", {"hex": raw.hex()}, deadline_s=None)
    (verdict,) = exits.wait()
    assert verdict.kind == "protocol"


def test_a_reply_that_is_too_large_costs_the_worker(worker: WorkerProcess, exits: Exits) -> None:
    with pytest.raises(WorkerLost, match="protocol"):
        worker.call("send_raw", {"hex": (NEXT + b"{}").hex(), "pad": frames.MAX_FRAME_BYTES + 1}, deadline_s=None)
    assert exits.wait()[0].kind == "protocol"


def test_descriptors_from_a_worker_are_dropped(worker: WorkerProcess, exits: Exits) -> None:
    before = open_fds()
    with pytest.raises(WorkerLost, match="protocol"):
        worker.call("send_fd", deadline_s=None)
    assert exits.wait()[0].kind == "protocol"
    assert open_fds() <= before


def test_an_answer_given_twice_is_found_at_the_next_command(worker: WorkerProcess, exits: Exits) -> None:
    worker.call("answer_twice", {"number": 2}, deadline_s=10)
    with pytest.raises(WorkerLost, match="protocol"):
        worker.call("echo", deadline_s=10)
    assert exits.wait()[0].kind == "protocol"


@pytest.mark.parametrize("command", ["close_socket"])
def test_a_worker_that_closes_its_socket_is_ended(worker: WorkerProcess, exits: Exits, command: str) -> None:
    with pytest.raises(WorkerLost):
        worker.call(command, deadline_s=None)
    assert exits.wait()[0].kind == "protocol"


def test_a_reply_that_does_not_fit_ends_the_worker(hostile_zygote: ZygoteProcess, exits: Exits) -> None:
    worker = hostile_zygote.fork(linear_spec(memory_bytes=2048 * MIB), on_exit=exits)
    with pytest.raises(PNodeError):
        worker.call("answer_too_much", deadline_s=None)
    worker.close()
    worker = hostile_zygote.fork(linear_spec(), on_exit=exits)
    with pytest.raises(WorkerLost):
        worker.call("long_reply", deadline_s=None)
    assert exits.wait()[0].kind == "exit"


# Nothing is left over


def test_fifty_workers_leave_nothing_behind(hostile_zygote: ZygoteProcess, spec: spec_pb2.VNodeSpec) -> None:
    hostile_zygote.fork(spec).close()
    fds, maps = open_fds(), _arenas()
    ends = Exits()
    for number in range(50):
        worker = hostile_zygote.fork(spec, on_exit=ends)
        if number % 2:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            ends.wait((number + 1) // 2)
        worker.close()
    assert open_fds() == fds
    assert _arenas() == maps
    assert Path(f"/proc/{hostile_zygote.pid}/task/{hostile_zygote.pid}/children").read_text() == ""
    assert len(ends.seen) == 25


def test_a_dead_worker_gives_its_memory_back_without_close(worker: WorkerProcess, exits: Exits) -> None:
    maps = _arenas()
    worker.kill("a test")
    exits.wait()
    assert _arenas() == maps - 2


def _arenas() -> int:
    return Path("/proc/self/maps").read_text().count("pnode-")


def test_verdicts_can_be_written_as_json(worker: WorkerProcess, exits: Exits) -> None:
    worker.kill("a test")
    assert json.dumps(dict(exits.wait()[0].figures))
