"""Times a case: torch and samebits in turns, so that a busy moment of the machine meets both."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import samebits
import torch
from torch.utils.benchmark import Timer

from benchmarks.kernels.registry import Case, Row

SLOW_S = 0.05  # calls as long as this are timed one by one
ROUNDS, SLOW_ROUNDS = 5, 2
RUN_S = 0.015  # of one side in one round


def set_threads(threads: int) -> None:
    """Let both sides use this many threads."""
    torch.set_num_threads(threads)
    samebits.set_num_threads(threads)


def measure(case: Case, threads: int) -> Row:
    """The medians over the rounds of both times and of their ratio."""
    timers = [_timer(side, threads) for side in (case.plain, case.ours)]
    slow = max(timer.timeit(1).median for timer in timers) > SLOW_S
    rounds = [tuple(_once(timer, slow) for timer in timers) for _ in range(SLOW_ROUNDS if slow else ROUNDS)]
    plain, ours = (statistics.median(times) for times in zip(*rounds, strict=True))
    return Row(case.name, plain, ours, statistics.median(ours / plain for plain, ours in rounds))


def _timer(side: Callable[[], object], threads: int) -> Timer:
    return Timer("side()", globals={"side": side}, num_threads=threads)


def _once(timer: Timer, slow: bool) -> float:
    return float((timer.timeit(1) if slow else timer.blocked_autorange(min_run_time=RUN_S)).median)
