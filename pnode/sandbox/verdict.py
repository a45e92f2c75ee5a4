"""Why a worker ended, with figures: the one answer that callers, logs and the orchestrator all see."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pnode.errors import LimitBreach, PNodeError, WallClockBreach, WorkerLost

# The worker's own exit codes. Distinct from Python's 1 and 2 and from a shell's 126 and above.
EXIT_MEMORY = 71
EXIT_ORPHAN = 72
EXIT_FAULT = 73
EXIT_PROTOCOL = 74

Kind = Literal["exit", "signal", "wall_clock", "memory", "cpu", "protocol", "killed", "parent"]
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """How a worker ended.

    kind: `exit` by itself, `signal` from outside, `wall_clock`, `memory` and `cpu` over a limit, `protocol` for a
    reply that breaks the rules, `killed` on our own wish, `parent` because the zygote went first.
    figures: what is known of `limit_bytes`, `limit_s`, `code`, `signal`, and, of its whole life, `cpu_s` and
    `max_rss_bytes`.
    """

    kind: Kind
    message: str
    figures: Figures = field(default_factory=dict)

    def error(self) -> PNodeError:
        """The error for the call that was running."""
        if self.kind == "wall_clock":
            return WallClockBreach(self.sentence)
        if self.kind in ("memory", "cpu"):
            return LimitBreach(self.sentence)
        return WorkerLost(self.sentence)

    @property
    def sentence(self) -> str:
        """The message and the figures: what callers and the orchestrator read."""
        figures = ", ".join(f"{name} {value:.15g}" for name, value in sorted(self.figures.items()))
        return f"{self.message} ({figures})" if figures else self.message

    @property
    def reason(self) -> str:
        """The reason word of `error()`, as ReportFailure carries it."""
        return type(self.error()).reason


@dataclass(frozen=True)
class Doom:
    """Why we killed it: decided before the kill, so that the signal does not hide the cause."""

    kind: Kind
    message: str
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class ExitStatus:
    """What the zygote reaped. `code` is negative for a signal; `cpu_s` and `max_rss_bytes` cover the whole life."""

    code: int
    cpu_s: float
    max_rss_bytes: int


def judge(status: ExitStatus | None, doom: Doom | None, *, memory_bytes: int, cpu_s: float) -> Verdict:
    """The verdict from what was reaped (None: nobody could reap it) and from why we killed it, if we did."""
    figures: dict[str, float] = {}
    if status is not None:
        figures = {"cpu_s": round(status.cpu_s, 3), "max_rss_bytes": status.max_rss_bytes}
    if status is not None and (status.code == EXIT_MEMORY or (doom and doom.kind == "memory")):
        figures["limit_bytes"] = memory_bytes
    if doom is not None:
        return Verdict(doom.kind, doom.message, {**figures, **doom.figures})
    if status is None:
        return Verdict("exit", "the worker is gone and its exit status is unknown")
    if status.code < 0:
        return _by_signal(-status.code, figures, cpu_s)
    figures["code"] = status.code
    if status.code == EXIT_MEMORY:
        return Verdict("memory", f"went over its {memory_bytes} bytes of memory", figures)
    if status.code == EXIT_ORPHAN:
        return Verdict("parent", "the zygote died while the worker started", figures)
    return Verdict("exit", f"the worker exited with code {status.code}", figures)


def _by_signal(number: int, figures: dict[str, float], cpu_s: float) -> Verdict:
    figures["signal"] = number
    if number == signal.SIGXCPU:
        message = f"went over its {cpu_s:g} s of processor time in one command"
        return Verdict("cpu", message, {**figures, "limit_s": cpu_s})
    hint = " (by the system for want of memory, or by hand)" if number == signal.SIGKILL else ""
    return Verdict("signal", f"the worker was killed by {_name(number)}{hint}", figures)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
