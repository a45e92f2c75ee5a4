"""The zygote itself: starts, dies, is replaced, and never forks with a second thread."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sandbox_specs import linear_spec
from sandbox_world import DEADLINE_S, Exits, hostile, open_fds

from pnode.errors import ConfigError, DeadlineExceeded, PNodeError, Unavailable
from pnode.sandbox.supervisor import ZygoteProcess
from pnode.v1 import spec_pb2


def test_progress_is_told_and_the_probe_answers(spec: spec_pb2.VNodeSpec) -> None:
    notes: list[str] = []
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S, on_progress=notes.append) as zygote:
        assert notes == ["loading, threads: 1"]
        probed = zygote.probe()
        assert probed["versions"] == {"torch": "none"}
        assert probed["pid"] != zygote.pid
        assert zygote.device == "cpu"


def test_auto_is_the_cpu_where_no_gpu_is_found() -> None:
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S, device="auto") as zygote:
        assert zygote.device == "cpu"


def test_a_gpu_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(ConfigError, match="device=cuda"):
        ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S, device="cuda")


@pytest.mark.parametrize(
    ("wish", "message"), [("fails", "RuntimeError: the canary died"), ("exits", "ended while loading")]
)
def test_a_zygote_that_cannot_start_is_one_clear_error(wish: str, message: str) -> None:
    before, threads = open_fds(), threading.active_count()
    with pytest.raises(ConfigError, match=message):
        ZygoteProcess.start(program=hostile(wish), deadline_s=DEADLINE_S)
    assert open_fds() == before
    assert threading.active_count() == threads


def test_a_start_that_takes_too_long_is_given_up() -> None:
    before = open_fds()
    # Where the machine is busy, it does not come as far as loading.
    with pytest.raises(DeadlineExceeded, match=r"starting|loading"):
        ZygoteProcess.start(program=hostile("hangs"), deadline_s=1.0)
    assert open_fds() == before


def test_no_fork_with_a_second_thread(spec: spec_pb2.VNodeSpec) -> None:
    with ZygoteProcess.start(program=hostile("threads"), deadline_s=DEADLINE_S) as zygote:
        with pytest.raises(Unavailable, match="2 threads"):
            zygote.fork(spec)
        with pytest.raises(Unavailable, match="2 threads"):
            zygote.probe()


def test_threads_of_the_front_do_not_reach_the_zygote(spec: spec_pb2.VNodeSpec) -> None:
    """It is made by exec: gRPC, started first, is no danger to it."""
    import grpc

    channel = grpc.insecure_channel("127.0.0.1:1")
    connecting = grpc.channel_ready_future(channel)
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S) as zygote:
        assert len(os.listdir(f"/proc/{zygote.pid}/task")) == 1
        assert zygote.fork(spec).call("echo", {"a": 1}, deadline_s=10).fields == {"a": 1}
    connecting.cancel()
    channel.close()


def test_its_workers_die_with_it_and_another_takes_its_place(spec: spec_pb2.VNodeSpec, exits: Exits) -> None:
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S) as zygote:
        first = zygote.pid
        workers = [zygote.fork(spec, on_exit=exits) for _ in range(3)]
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert {verdict.kind for verdict in exits.wait(3)} == {"parent"}
        assert all(_is_dead(worker.pid) for worker in workers)
        # A fork waits until there is a zygote again.
        again = zygote.fork(spec, on_exit=exits)
        assert again.call("echo", {"a": 1}, deadline_s=10).fields == {"a": 1}
        assert zygote.pid not in (None, first)
    assert len(exits.seen) == 4
    assert exits.seen[3][1].kind == "killed"


def _replaced(zygote: ZygoteProcess) -> None:
    """Kill the zygote, and wait for the next one."""
    pid, ends = zygote.pid, Exits()
    zygote.fork(linear_spec(profile="torch"), on_exit=ends)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    ends.wait()
    zygote.wait_ready(DEADLINE_S)
    assert zygote.pid not in (None, pid)


def test_a_zygote_that_was_replaced_proves_its_bits_before_it_serves_them(
    spec: spec_pb2.VNodeSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S) as zygote:
        found = zygote.probe()
        zygote.fork(spec).close()
        assert "gives the digest" not in caplog.text, "the first one has said it already"
        _replaced(zygote)
        for _ in range(2):
            zygote.fork(spec).close()
        assert caplog.text.count(f"zygote {zygote.pid} gives the digest of the first one") == 1
        assert zygote.probe() == found


def test_one_that_computes_other_bits_serves_none(spec: spec_pb2.VNodeSpec) -> None:
    doubts: list[str] = []
    with ZygoteProcess.start(program=hostile("changes"), deadline_s=DEADLINE_S, on_doubt=doubts.append) as zygote:
        zygote.probe()
        zygote.fork(spec).close()
        _replaced(zygote)
        for _ in range(2):
            with pytest.raises(Unavailable, match="other bits"):
                zygote.fork(spec)
        assert len(doubts) == 1
        assert f"zygote {zygote.pid} computes other bits" in doubts[0]
        zygote.fork(linear_spec(profile="torch")).close()


def _is_dead(pid: int | None) -> bool:
    """Gone, or a zombie that waits for this machine's init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_command_that_runs_when_the_zygote_dies_fails(spec: spec_pb2.VNodeSpec) -> None:
    failed: list[PNodeError] = []
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S) as zygote:
        worker = zygote.fork(spec)

        def call() -> None:
            try:
                worker.call("hang", deadline_s=None)
            except PNodeError as error:
                failed.append(error)

        calling = threading.Thread(target=call)
        calling.start()
        assert zygote.pid is not None
        os.kill(zygote.pid, signal.SIGKILL)
        calling.join(DEADLINE_S)
    assert [error.reason for error in failed] == ["WORKER_LOST"]


def test_a_stopped_zygote_costs_a_caller_no_more_than_its_deadline(spec: spec_pb2.VNodeSpec) -> None:
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S) as zygote:
        assert zygote.pid is not None
        os.kill(zygote.pid, signal.SIGSTOP)
        with pytest.raises(Unavailable, match="did not fork within"):
            zygote.fork(spec, deadline_s=0.3)
        os.kill(zygote.pid, signal.SIGCONT)
        # The late child is killed on arrival, and the next fork is served.
        assert zygote.fork(spec).call("echo", {"a": 1}, deadline_s=10).fields == {"a": 1}
        children = Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text().split()
        assert len(children) == 1


def test_nothing_outlives_the_front(spec: spec_pb2.VNodeSpec) -> None:
    """The front is killed with SIGKILL: nobody is left to clean up, the kernel does."""
    front = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("doomed_front.py"))], stdout=subprocess.PIPE, text=True
    )
    assert front.stdout is not None
    pidfds = [os.pidfd_open(int(pid)) for pid in front.stdout.readline().split()]
    assert len(pidfds) == 3
    front.kill()
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(DEADLINE_S * 1000), "a process outlived the front"
        os.close(pidfd)
    front.wait(DEADLINE_S)
    front.stdout.close()


def test_an_interrupt_is_the_fronts_to_answer(spec: spec_pb2.VNodeSpec) -> None:
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S) as zygote:
        worker = zygote.fork(spec)
        assert zygote.pid is not None
        assert worker.pid is not None
        assert os.getsid(zygote.pid) == zygote.pid  # no terminal reaches it
        for pid in (zygote.pid, worker.pid):
            os.kill(pid, signal.SIGINT)
        assert worker.call("echo", {"a": 1}, deadline_s=10).fields == {"a": 1}
        assert zygote.fork(spec).alive


def test_close_ends_everything(spec: spec_pb2.VNodeSpec, exits: Exits) -> None:
    before = open_fds()
    zygote = ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S)
    pid, worker = zygote.pid, zygote.fork(spec, on_exit=exits)
    zygote.close()
    zygote.close()
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{worker.pid}").exists()
    assert [verdict.kind for verdict in exits.wait()] == ["killed"]
    with pytest.raises(Unavailable):
        zygote.fork(spec, deadline_s=0.1)
    assert open_fds() == before


def test_a_callback_that_fails_harms_nobody(spec: spec_pb2.VNodeSpec, exits: Exits) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("in a callback")

    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S) as zygote:
        zygote.fork(spec, on_exit=broken).kill("a test")
        zygote.fork(spec, on_exit=exits).kill("a test")
        exits.wait()
        assert zygote.fork(spec).call("echo", deadline_s=10).fields == {}
