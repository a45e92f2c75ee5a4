"""Prints the table of speeds: `python -m benchmarks.kernels [--json OUT] [--only GROUP] [--threads 1,2] [--quick]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import samebits
import torch

from benchmarks.kernels import report
from benchmarks.kernels.registry import Case, Group, Row, load_groups
from benchmarks.kernels.timing import measure, set_threads


def arguments(groups: Sequence[str], given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description="samebits beside plain torch")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write machine, rows and means there")
    parser.add_argument("--only", action="append", choices=groups, metavar="GROUP", help=f"of {', '.join(groups)}")
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases whose name holds the text")
    parser.add_argument("--threads", default="1,2", metavar="N,N", help="numbers of threads (default: 1,2)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    return parser.parse_args(given)


def rows_of(group: Group, threads: int, *, quick: bool, match: str) -> list[Row]:
    """Measure a group, printing as it goes."""
    set_threads(threads)
    torch.manual_seed(0)
    rows = []
    for each in group.cases(quick, threads):
        if match in each.name:
            rows.append(measure(each, threads) if isinstance(each, Case) else each)
            report.print_row(group, threads, rows[-1])
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    groups = load_groups()
    options = arguments(list(groups), given)
    samebits.warm()
    report.print_head()
    rows, summaries = [], []
    for name in options.only or groups:
        for threads in map(int, options.threads.split(",")):
            measured = rows_of(groups[name], threads, quick=options.quick, match=options.match)
            rows += [(groups[name], threads, row) for row in measured]
            if whole := report.summary(groups[name], threads, measured):
                summaries.append(whole)
    report.print_summaries(summaries)
    if options.json:
        report.write(options.json, rows, summaries)
    set_threads(1)


if __name__ == "__main__":
    main()
