"""Workers that end in every bad way, again and again: each is told once, and nothing of any of them is left."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from sandbox_specs import MIB, linear_spec
from sandbox_world import Exits, open_fds

from pnode.errors import PNodeError
from pnode.sandbox.supervisor import WorkerProcess, ZygoteProcess

# A command that ends its worker, and the kind of the verdict.
WAYS: list[tuple[str, dict[str, object], str]] = [
    ("kill_self", {"signal": signal.SIGSEGV}, "signal"),
    ("kill_self", {"signal": signal.SIGKILL}, "signal"),
    ("kill_self", {"signal": signal.SIGABRT}, "signal"),
    ("leave", {"code": 7}, "exit"),
    ("leave", {"code": 0}, "exit"),
    ("fault", {}, "exit"),
    ("send_raw", {"hex": b"garbage".hex()}, "protocol"),
    ("close_socket", {}, "protocol"),
    ("send_fd", {}, "protocol"),
    ("eat", {}, "memory"),
]


@pytest.mark.parametrize("number", [len(WAYS) * 8, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_crashes_leave_nothing_behind(zygote: ZygoteProcess, worker: WorkerProcess, number: int) -> None:
    zygote.fork(linear_spec()).close()
    before, kinds = inventory(zygote), []
    ends = Exits()
    for index in range(number):
        command, fields, kind = WAYS[index % len(WAYS)]
        doomed = zygote.fork(linear_spec(memory_bytes=32 * MIB), on_exit=ends)
        with pytest.raises(PNodeError):
            doomed.call(command, fields, deadline_s=None)
        kinds.append(kind)
        ends.wait(index + 1)
        doomed.close()
    assert [verdict.kind for verdict in ends.wait(number)] == kinds
    assert worker.call("echo", {"a": 1}, deadline_s=10).fields == {"a": 1}
    assert inventory(zygote) == before


def test_a_crash_gives_everything_back_before_anyone_closes_it(zygote: ZygoteProcess) -> None:
    zygote.fork(linear_spec()).close()
    before, ends = inventory(zygote), Exits()
    doomed = [zygote.fork(linear_spec(), on_exit=ends) for _ in range(5)]
    for each in doomed:
        os.kill(each.pid or 0, signal.SIGKILL)
    ends.wait(5)
    assert inventory(zygote) == before


def inventory(zygote: ZygoteProcess) -> dict[str, object]:
    """All that could be left: descriptors, mappings and threads here; children and descriptors of the zygote."""
    return {
        "fds": open_fds(),
        "mapped": Path("/proc/self/maps").read_text().count("memfd:"),
        "threads": threading.active_count(),
        "children": Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text(),
        "zygote's fds": len(os.listdir(f"/proc/{zygote.pid}/fd")),
    }
