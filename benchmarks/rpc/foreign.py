"""A peer's script, run in the peers' own environment (`make bench-peers`), and asked for times line by line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.rows import Row
from pnode.errors import PNodeError

_ROOT = Path(__file__).parents[2]
PYTHON = _ROOT / ".venv-peers" / "bin" / "python"
_SCRIPTS = Path(__file__).parent / "peers"
# Starting Ray or hivemind takes seconds, on a busy machine many.
_END_S = 30.0
_TAIL_CHARS = 2000
# Neither may tell anybody of our runs, or ask who we are.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "HIVEMIND_LOGLEVEL": "ERROR"}


def installed() -> bool:
    """Whether the peers' environment is there."""
    return PYTHON.exists()


def absent(name: str) -> Row:
    """The row of a peer that is not installed."""
    return Row(f"{name}: not measured, run make bench-peers", math.nan, "")


class Foreign:
    """A running script."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def times(self, num: int) -> list[float]:
        """The seconds of `num` calls, one after the other."""
        stdin = self._process.stdin
        assert stdin is not None, "it was asked for"
        stdin.write(f"{num}\n")
        stdin.flush()
        return [float(each) for each in self.line("seconds")["seconds"]]

    def line(self, key: str) -> dict[str, Any]:
        """The next JSON object with such a key. Raises PNodeError with the log's end where the script ended first."""
        stdout = self._process.stdout
        assert stdout is not None, "it was asked for"
        for raw in stdout:
            try:
                found = json.loads(raw)
            except ValueError:
                continue
            if isinstance(found, dict) and key in found:
                return found
        tail = self._log.read_text("utf-8", "replace")[-_TAIL_CHARS:]
        raise PNodeError(f"{self._process.args!r} ended without a word of {key!r}; its last lines:\n{tail}")


@contextmanager
def foreign(script: str, *arguments: object) -> Iterator[Foreign]:
    """Start a script of `peers/` and end it, its own children too, at the end."""
    with tempfile.TemporaryDirectory(prefix="pnode-peer-") as home:
        log = Path(home) / "stderr"
        command = [str(PYTHON), str(_SCRIPTS / script), *map(str, arguments)]
        # HOME: what they leave behind goes with it.
        environment = {**os.environ, **_QUIET, "HOME": home}
        environment.pop("PYTHONPATH", None)
        with log.open("w") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
            )
        try:
            yield Foreign(process, log)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """A script ends by itself once its stdin does: so its own children are ended in its own way."""
    try:
        process.communicate(timeout=_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
