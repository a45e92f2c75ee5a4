"""What is measured: groups of rows, each a generator that registers itself.

@group("echo")
def echo(quick: bool) -> Iterator[Row]:
    yield Row("forward of 1 MiB against a bare echo", 1.3, "x", most=1.5, aim=1.3)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.discovery import import_beside
from benchmarks.rows import Row

# The rows for `quick`, each as soon as it is measured.
Rows = Callable[[bool], Iterator[Row]]

GROUPS: dict[str, Rows] = {}


def group(name: str) -> Callable[[Rows], Rows]:
    """Register a generator of rows."""

    def register(rows: Rows) -> Rows:
        if name in GROUPS:
            raise ValueError(f"two groups are called {name}")
        GROUPS[name] = rows
        return rows

    return register


def load_groups() -> dict[str, Rows]:
    """Import every module beside this one, so that their groups register; by name."""
    import_beside(__package__)
    return dict(sorted(GROUPS.items()))
