"""A job over a bad network: calls lost, doubled, late and overtaken, nodes killed and started again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.test_e2e_devnet import complete

pytestmark = pytest.mark.timeout(420)

ALL = "devnet.faults=drop:0.05,duplicate:0.05,delay:0.1,reorder:0.05,kill:0.02"


def test_a_short_run_in_bad_weather(tmp_path: Path) -> None:
    line, err = complete(
        tmp_path,
        "job.steps=16",
        "job.checkpoint=5",
        "job.batch=16",
        "job.warmup=2",
        "devnet.kill=8",
        "devnet.seed=7",
        "devnet.faults=drop:0.1,duplicate:0.1,delay:0.1,reorder:0.1",
    )
    assert line["bitwise_equal"] is True
    assert set(line["faults"]) == {"drop", "duplicate", "delay", "reorder"}
    assert sum(line["faults"].values()) > 40
    assert (line["kills"], line["seed"]) == (1, 7)
    assert "SIGKILL to node-" in err
    report = json.loads((Path(line["folder"]) / "report.json").read_text())
    assert report["differing_replays"] == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(1, 6))
def test_two_hundred_steps_in_bad_weather(tmp_path: Path, seed: int) -> None:
    """Its kills hit a node in every fiftieth step, and each comes back."""
    line, _ = complete(tmp_path, "job.steps=200", "devnet.kill=none", f"devnet.seed={seed}", ALL)
    assert line["bitwise_equal"] is True
    report = json.loads((Path(line["folder"]) / "report.json").read_text())
    assert line["kills"] == len(report["planned_kills"])
    assert report["differing_replays"] == 0
    # Where no node was left, the run waited until one had started again, which a busy machine takes its time for.
    assert min(report["recovery_seconds"]) < 10.0
