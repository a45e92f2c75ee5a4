"""A VNode runs out of memory in the middle of a run: the verdict is shown, the run recovers, the digest is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_e2e_devnet import assert_nobody_is_left, devnet

# Everything under test is in other processes, which a busy machine may hold up for long.
pytestmark = pytest.mark.timeout(420)

# Every piece of memory of a page or more is asked of the system anew, so that a worker can do no step without asking.
EVERY_PAGE_IS_ASKED_FOR = {"MALLOC_MMAP_THRESHOLD_": "4096"}
# What it has already it may keep, and the hard limit stays, up to which it says that it has no more.
LIMIT = """
_, hard = resource.prlimit(int(sys.argv[1]), resource.RLIMIT_AS)
resource.prlimit(int(sys.argv[1]), resource.RLIMIT_AS, (resource.getpagesize(), hard))
"""


def workers(of: psutil.Process) -> list[psutil.Process]:
    """The boxed children of every zygote below a process."""
    zygotes = [each for each in of.children(recursive=True) if "pnode.sandbox.zygote" in " ".join(each.cmdline())]
    return [
        child
        for zygote in zygotes
        for child in zygote.children()
        if child.ppid() == zygote.pid and "Seccomp:\t2" in Path(f"/proc/{child.pid}/status").read_text()
    ]


def take_memory_from(worker: psutil.Process) -> None:
    """Leave it what it has and not a page more. As its own user, who may do that."""
    # The interpreter itself may be out of that user's sight, so the change of users comes after its start.
    become = f"os.setgroups([]); os.setresgid(*[{worker.gids().real}] * 3); os.setresuid(*[{worker.uids().real}] * 3)"
    code = f"import os, resource, sys\nif os.geteuid() == 0: {become}\n{LIMIT}"
    subprocess.run([sys.executable, "-c", code, str(worker.pid)], check=True, timeout=60)


def test_a_vnode_without_memory_is_ended_and_the_run_recovers(tmp_path: Path) -> None:
    overrides = ("job.steps=60", "job.checkpoint=4", "job.batch=16", "job.warmup=2", "devnet.kill=none")
    with devnet(tmp_path, *overrides, environment=EVERY_PAGE_IS_ASKED_FOR) as process:
        assert process.stderr is not None
        # From the first checkpoint on all workers are there, and each of them is in the midst of its work.
        assert any("checkpoint at version" in line for line in process.stderr)
        take_memory_from(workers(psutil.Process(process.pid))[0])
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_nobody_is_left(tmp_path)
    last = json.loads(out.splitlines()[-1])
    assert last["bitwise_equal"] is True
    assert last["generation"] >= 2
    logs = "".join(path.read_text() for path in Path(last["folder"]).rglob("*.log"))
    assert "LIMIT_BREACH" in logs
    assert "went over its" in logs
