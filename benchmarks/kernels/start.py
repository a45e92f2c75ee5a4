"""The start: importing, loading every kernel from a warm cache, and compiling every kernel for a cold one."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import samebits

from benchmarks.kernels.registry import Case, Limits, Row, group

ROUNDS = 5
IMPORT = "import samebits"
WARM = f"{IMPORT}; samebits.warm()"
SELFTEST = f"{WARM}; from samebits import selftest; selftest.run()"


def _seconds(code: str, **environment: str) -> float:
    """How long the code takes in a fresh interpreter that has imported torch."""
    program = f"import time, torch; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
    environ = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def _median(code: str) -> Row:
    return Row(code.rpartition("; ")[2], None, statistics.median(_seconds(code) for _ in range(ROUNDS)), None)


@group("start", Limits())
def start(quick: bool, threads: int) -> Iterator[Case | Row]:
    """Seconds after `import torch`, each from the import on; the cold start only where time allows it."""
    if threads != 1:
        return
    samebits.warm()
    for code in (IMPORT, WARM, SELFTEST):
        yield _median(code)
    if not quick:
        with tempfile.TemporaryDirectory() as empty:
            yield Row("samebits.warm(), cold cache", None, _seconds(WARM, SAMEBITS_CACHE_DIR=empty), None)
