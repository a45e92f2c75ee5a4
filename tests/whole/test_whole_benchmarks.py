"""The benchmark of kernels runs from its command line, and its record holds what it printed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import rows
from benchmarks.kernels.registry import Group, Limits, group, load_groups
from benchmarks.kernels.registry import Row as Timed
from benchmarks.kernels.report import summary
from benchmarks.rows import Row

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_the_record_holds_what_was_printed(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks.kernels", "--quick", "--only", "linear", "--match", "1x256x256 "]
    done = subprocess.run(
        [*command, "--threads", "1", "--json", record],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    written = json.loads(record.read_text())
    names = [row["name"] for row in written["rows"]]
    assert names == [f"1x256x256 {what}" for what in ("forward", "grad input", "grad weight")]
    assert all(name in done.stdout for name in names)
    assert all(row["ratio"] > 0 and row["threads"] == 1 for row in written["rows"])
    assert written["means"][0]["worst"] == max(row["ratio"] for row in written["rows"])
    assert "RepDL" in done.stdout


def test_means_are_geometric_and_leave_out_what_has_no_ratio() -> None:
    limits = Limits(mean_reach=1.25)
    timed = [
        Timed("a", 1.0, 2.0, 2.0),
        Timed("b", 1.0, 0.5, 0.5),
        Timed("c", None, 3.0, None),
        Timed("d", 1.0, 1.0, 1.0),
    ]
    whole = summary(Group("g", limits, lambda quick, threads: iter(timed)), 1, timed)
    assert whole is not None
    assert math.isclose(whole.mean, 1.0)
    assert (whole.cases, whole.worst, whole.worst_case) == (3, 2.0, "a")
    assert summary(Group("g", limits, lambda quick, threads: iter(())), 1, timed[2:3]) is None


def test_a_group_is_registered_once() -> None:
    assert {"linear", "matmul"} <= set(load_groups())
    with pytest.raises(ValueError, match="two groups are called linear"):
        group("linear", Limits())(lambda quick, threads: iter(()))


def test_rows_say_what_they_must_reach_and_whether_they_do(tmp_path: Path) -> None:
    reached = [Row("a", 1.3, "x", most=1.3, aim=1.1), Row("b", 2.0, "x", least=2.0), Row("c", 9.0, "ms")]
    missed = [Row("d", 1.31, "x", most=1.3), Row("e", 1.9, "x", least=2.0)]
    assert [each.reached for each in (*reached, *missed)] == [True, True, True, False, False]
    assert [str(each).endswith("MISSED") for each in (*reached, *missed)] == [False, False, False, True, True]
    assert "at most 1.3, aim 1.1" in str(reached[0])
    assert (rows.exit_code(reached), rows.exit_code([*reached, missed[0]])) == (0, 1)
    rows.write(tmp_path / "record.json", missed, {"cores": 2})
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["cores"] == 2
    assert [row["figure"] for row in record["rows"]] == [1.31, 1.9]
