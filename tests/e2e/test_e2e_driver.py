"""Drivers that die by SIGKILL in the middle of a step, each replaced by another process: the same digest."""

from __future__ import annotations

import json
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pnode.client.local import LocalRun
from pnode.config import load
from pnode.devnet.child import PNODE, Child, end_all
from pnode.jobs.catalog import make_job
from pnode.storage.content import get_content
from pnode.storage.urls import open_store
from pnode.vnode.state import run_digest

pytestmark = pytest.mark.timeout(420)

START_S = 240.0
JOB = ["job.steps=7", "job.batch=16", "job.warmup=2", "job.checkpoint=3", "job.stages=3"]
PROGRAM = Path(__file__).with_name("mortal_driver.py")


def start(folder: Path, name: str, *arguments: str) -> Child:
    common = (f"store.url=file://{folder}/store", f"node.data_dir={folder}/{name}", "device=cpu")
    return Child(name, [*PNODE, *common, *arguments], folder / f"{name}.log")


def drive(
    folder: Path, orchestrator: Child, name: str, *settings: str, **told: str
) -> tuple[Child, list[dict[str, Any]]]:
    """Run a driver to its end; returns it and what it told."""
    lines: list[dict[str, Any]] = []
    line = json.dumps({"orchestrator": orchestrator.address, "settings": [*JOB, *settings], **told})
    child = Child(name, [str(PROGRAM), line], folder / f"{name}.log", on_line=lines.append)
    try:
        assert child.wait_end(120.0), child.tail(20)
    finally:
        child.kill()
    return child, lines


def steps(lines: list[dict[str, Any]]) -> list[int]:
    return [line["step"] for line in lines if line["event"] == "StepStarted"]


def waits(lines: list[dict[str, Any]]) -> list[str]:
    return [line["why"] for line in lines if line["event"] == "Waiting" and "another driver" in line["why"]]


def reference() -> str:
    job = make_job(load(JOB).job)
    run = LocalRun(job.cut("reference", stages=1))
    for step in range(job.steps):
        run.step(step, job.batch(step))
    return run.digest()


def test_drivers_die_in_the_middle_of_steps_and_others_go_on(tmp_path: Path) -> None:
    """One with the same key takes over at once; another of the same name waits until the lease has run out."""
    orchestrator = start(
        tmp_path, "orchestrator", "role=orchestrator", "orchestrator.port=0", "orchestrator.lease_s=3s",
        "orchestrator.heartbeat_s=500ms", "orchestrator.missed=20", "orchestrator.min_nodes=2",
        "orchestrator.spread=true", "tls.mode=on", "orchestrator.member_port=0",
    )  # fmt: skip
    orchestrator.wait_serving(START_S)
    nodes = [
        start(tmp_path, name, f"orchestrator.address={orchestrator.address}", "node.port=0", "tls.mode=on")
        for name in ("one", "two")
    ]
    try:
        for node in nodes:
            node.wait_serving(START_S)
        kept = f"driver.data_dir={tmp_path}/driver"
        first, told = drive(tmp_path, orchestrator, "first", kept, holder="a", dies="Train:2")
        assert (first.exit_code, steps(told)) == (-signal.SIGKILL, [0, 1, 2])
        second, told = drive(tmp_path, orchestrator, "second", kept, holder="a", dies="Apply:4")
        assert (second.exit_code, steps(told), waits(told)) == (-signal.SIGKILL, [2, 3, 4], [])
        third, told = drive(tmp_path, orchestrator, "third", holder="a", dies="")
        assert third.exit_code == 0, third.tail(20)
        assert waits(told), "its key is another one"
        assert steps(told)[0] in (4, 5)
        assert {line["generation"] for line in told if line["event"] == "Serving"} == {1}, "nothing was replayed"
        with closing(open_store(f"file://{tmp_path}/store")) as store:
            states = [get_content(store, sha256, max_bytes=1 << 30) for sha256 in told[-1]["sha256"]]
        assert run_digest(states) == reference()
    finally:
        end_all(nodes, 10.0)
        end_all([orchestrator], 10.0)
