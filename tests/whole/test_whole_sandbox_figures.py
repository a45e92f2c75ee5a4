"""The benchmark of the sandbox runs from its command line. How fast this machine is today, it does not judge."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What is measured, and between which bounds a figure can be at all.
ROWS = {
    "fork to first answer, median": (0.1, 60_000),
    "fork to first answer, p99": (0.1, 60_000),
    "private memory of a worker beyond its weights, median": (0.1, 64),
    "killed after a deadline, worst": (0, 60_000),
    "free memory lost to a breach of 512 MiB": (-1e6, 1e6),
    "forward of 1 MiB in the box": (0.01, 60_000),
    "cost of the layers on it": (-100, 1e6),
    "memory of 20 VNodes of 10 k parameters": (20, 4096),
    "errors of 8 clients on 8 VNodes": (0, 0),
    "calls a second of these clients": (0.1, 1e6),
}


@pytest.mark.timeout(600)
def test_the_quick_run_measures_everything(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks.sandbox", "--quick", "--json", str(record)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode in (0, 1), done.stderr
    written = json.loads(record.read_text())
    figures = {row["name"]: row["figure"] for row in written["rows"]}
    assert list(figures) == list(ROWS)
    for name, (low, high) in ROWS.items():
        assert math.isfinite(figures[name]), name
        assert low <= figures[name] <= high, name
        assert name in done.stdout
    assert done.returncode == (1 if "MISSED" in done.stdout else 0)
    assert set(written["layers"]) <= {"seccomp", "landlock", "uid"}
