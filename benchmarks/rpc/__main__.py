"""Prints the table of calls: `python -m benchmarks.rpc [--json OUT] [--only GROUP] [--quick]`.

Each row has a figure, its unit and what it must reach; the exit code is 1 where one of them does not.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows
from benchmarks.rpc.registry import load_groups
from pnode.transport import arenas


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    groups = load_groups()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rpc", description="calls beside a bare echo and peers")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the machine and the rows there")
    parser.add_argument("--only", action="append", choices=groups, metavar="GROUP", help=f"of {', '.join(groups)}")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    options = parser.parse_args(given)
    logging.basicConfig(level=logging.ERROR)
    arenas.keep()  # as every process of PNode that serves or calls; the bare echo has it, too
    print(json.dumps(rows.machine()))
    found = []
    for name in options.only or groups:
        for row in groups[name](options.quick):
            found.append(row)
            print(row, flush=True)
    if options.json:
        rows.write(options.json, found, rows.machine())
    return rows.exit_code(found)


if __name__ == "__main__":
    sys.exit(main())
