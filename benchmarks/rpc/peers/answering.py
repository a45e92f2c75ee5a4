"""How a peer's script works for the benchmark: one JSON line when it is ready, then one for each line that it reads."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable


def say(**line: object) -> None:
    """One JSON line for the benchmark. A peer's own output on stdout is no JSON and is passed over."""
    sys.stdout.write("\n" + json.dumps(line) + "\n")
    sys.stdout.flush()


def answer(call: Callable[[], object]) -> None:
    """For each number that is read, that many calls one after the other; answers with their seconds. Ends at EOF."""
    say(ready=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        say(seconds=seconds)
