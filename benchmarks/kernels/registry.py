"""What is measured: groups of cases, each group a generator that registers itself.

    @group("rows", Limits(worst_reach=2.5, worst_aim=1.0))
    def rows(quick: bool, threads: int) -> Iterator[Case | Row]:
        yield Case("softmax 512x256", lambda: torch.softmax(x, -1), lambda: samebits.softmax(x))

A case is timed by `timing`; a group that must measure in its own way (a cold start, a whole run) yields rows instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.discovery import import_beside


@dataclass(frozen=True)
class Case:
    """One thing to time: the same work by torch and by samebits."""

    name: str
    plain: Callable[[], object]
    ours: Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One measured line. Without torch's time there is no ratio; it is the median over rounds, not of the times."""

    name: str
    plain_s: float | None
    ours_s: float
    ratio: float | None


@dataclass(frozen=True)
class Limits:
    """The most that a group's ratios to torch must reach, and should: their geometric mean, and the worst of them."""

    mean_reach: float | None = None
    mean_aim: float | None = None
    worst_reach: float | None = None
    worst_aim: float | None = None
    note: str = ""


Cases = Callable[[bool, int], Iterator[Case | Row]]


@dataclass(frozen=True)
class Group:
    """A named group: its cases for (quick, threads), and what it is held against."""

    name: str
    limits: Limits
    cases: Cases


GROUPS: dict[str, Group] = {}


def group(name: str, limits: Limits) -> Callable[[Cases], Cases]:
    """Register a generator of cases."""

    def register(cases: Cases) -> Cases:
        if name in GROUPS:
            raise ValueError(f"two groups are called {name}")
        GROUPS[name] = Group(name, limits, cases)
        return cases

    return register


def load_groups() -> dict[str, Group]:
    """Import every module beside this one, so that their groups register; by name."""
    import_beside(__package__)
    return dict(sorted(GROUPS.items()))
