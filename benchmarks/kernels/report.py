"""Prints what was measured, and writes it as JSON: the machine, every row, the means beside what they must reach."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from samebits._cache import target
from samebits._vectors import LANES, ROWS, VECTORS

from benchmarks.kernels.registry import Group, Limits, Row

# Not measured here: figures of another library (RepDL, arXiv 2510.09180), from runs of its own code on a machine of
# this kind, which the project's numerics note records.
QUOTED = {
    "matmul against this library's": "100-200 times slower",
    "matmul against torch's MKL": "160-260 times slower",
    "LeNet on MNIST, 2 epochs, 2 threads": "473 s of compute; plain torch 14.7 s, ending at other bits",
}


@dataclass(frozen=True)
class Summary:
    """One group at one number of threads."""

    group: str
    threads: int
    cases: int
    mean: float
    worst: float
    worst_case: str
    limits: Limits


def summary(of: Group, threads: int, rows: Sequence[Row]) -> Summary | None:
    """The geometric mean and the worst ratio; None where no row has a ratio."""
    ratios = [(row.ratio, row.name) for row in rows if row.ratio is not None]
    if not ratios:
        return None
    worst, name = max(ratios)
    mean = math.exp(math.fsum(math.log(ratio) for ratio, _ in ratios) / len(ratios))
    return Summary(of.name, threads, len(ratios), mean, worst, name, of.limits)


def machine() -> dict[str, Any]:
    """Where the figures are from."""
    triple, processor, _ = target()
    return {
        "cpu": _cpu_model(), "cores": os.cpu_count(), "target": f"{triple} {processor}",
        "tile": {"lanes": LANES, "rows": ROWS, "vectors": VECTORS}, "torch": torch.__version__,
    }  # fmt: skip


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    unit, name = next((u, n) for u, n in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (0.0, "ns")) if seconds >= u)
    return f"{seconds / (unit or 1e-9):.3g} {name}"


def print_head() -> None:
    """The machine, and the table's first line."""
    print(json.dumps(machine()))
    print(f"{'group':<10} {'case':<34} {'threads':>7} {'torch':>10} {'samebits':>10} {'ratio':>7}")


def print_row(of: Group, threads: int, row: Row) -> None:
    """One line of the table."""
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    times = f"{_time(row.plain_s):>10} {_time(row.ours_s):>10}"
    print(f"{of.name:<10} {row.name:<34} {threads:>7} {times} {ratio:>7}", flush=True)


def print_summaries(summaries: Sequence[Summary]) -> None:
    """Means and worst ratios, beside what the project wants of them, and the quoted figures."""
    print("\nratio to torch: geometric mean (must reach, aim), worst (must reach, aim)")
    for each in summaries:
        mean = f"{each.mean:.2f} {_wanted(each.limits.mean_reach, each.limits.mean_aim)}"
        worst = f"{each.worst:.2f} {_wanted(each.limits.worst_reach, each.limits.worst_aim)}"
        print(f"{each.group:<10} {each.threads} threads, {each.cases:>3} cases: {mean}, {worst} at {each.worst_case}")
    for note in dict.fromkeys(f"{each.group}: {each.limits.note}" for each in summaries if each.limits.note):
        print(note)
    print("\nRepDL's, quoted and not measured here:")
    for what, figure in QUOTED.items():
        print(f"{what}: {figure}")


def _wanted(reach: float | None, aim: float | None) -> str:
    return f"({'-' if reach is None else reach}, {'-' if aim is None else aim})"


def write(path: Path, rows: Sequence[tuple[Group, int, Row]], summaries: Sequence[Summary]) -> None:
    """All of it as JSON."""
    record = {
        "machine": machine(),
        "rows": [{"group": of.name, "threads": threads, **asdict(row)} for of, threads, row in rows],
        "means": [asdict(each) for each in summaries],
        "quoted": QUOTED,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
