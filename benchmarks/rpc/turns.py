"""Times calls against each other: by turns, so that a busy moment of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def medians(calls: Sequence[Callable[[], object]], num: int) -> list[float]:
    """The median seconds of each call over `num` rounds, after a tenth as many to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(num + num // 10 + 1):
        for call, kept in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            kept.append(time.perf_counter() - started)
    return [statistics.median(kept[-num:]) for kept in times]
