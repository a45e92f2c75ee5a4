"""A VNode runs out of memory in the middle of a run: the verdict is shown, the run recovers, the digest is the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_e2e_devnet import assert_nobody_is_left, devnet

# Slow, since on a busy machine the worker may be met when it needs no more memory, and then nothing is breached.
pytestmark = [pytest.mark.timeout(420), pytest.mark.slow]

LIMIT = "resource.prlimit(int(sys.argv[1]), resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)"


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
    arguments = [str(worker.pid), str(worker.memory_info().vms)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)


def test_a_vnode_without_memory_is_ended_and_the_run_recovers(tmp_path: Path) -> None:
    with devnet(
        tmp_path, "job.steps=40", "job.checkpoint=4", "job.batch=16", "job.warmup=2", "devnet.kill=none"
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "training on" in line:
                break
        found: list[psutil.Process] = []
        ends = time.monotonic() + 120
        while not found and time.monotonic() < ends:
            found = workers(psutil.Process(process.pid))
        take_memory_from(found[0])
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_nobody_is_left(tmp_path)
    line_out = json.loads(out.splitlines()[-1])
    assert line_out["bitwise_equal"] is True
    assert line_out["generation"] >= 2
    logs = "".join(path.read_text() for path in Path(line_out["folder"]).rglob("*.log"))
    assert "LIMIT_BREACH" in logs
    assert "went over its" in logs
