"""Rows of figures, each beside what it must reach; how they are printed and written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure. `most` and `least`: what it may and must be; both None where it only informs."""

    name: str
    figure: float
    unit: str
    most: float | None = None
    least: float | None = None
    aim: float | None = None

    @property
    def reached(self) -> bool:
        """Whether it is what it must be."""
        return (self.most is None or self.figure <= self.most) and (self.least is None or self.figure >= self.least)

    def __str__(self) -> str:
        wanted = [
            f"at {word} {bound:g}" for word, bound in (("most", self.most), ("least", self.least)) if bound is not None
        ]
        if self.aim is not None:
            wanted.append(f"aim {self.aim:g}")
        missed = "" if self.reached else "  MISSED"
        return f"{self.name:<58} {self.figure:>10.2f} {self.unit:<4} {', '.join(wanted)}{missed}"


def machine() -> dict[str, Any]:
    """Where the figures are from."""
    return {"machine": platform.machine(), "kernel": platform.release(), "cores": os.cpu_count()}


def write(path: Path, rows: Sequence[Row], about: Mapping[str, object]) -> None:
    """All of it as JSON, after what is said about the machine."""
    path.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def exit_code(rows: Iterable[Row]) -> int:
    """1 where a figure is not what it must be."""
    return 0 if all(row.reached for row in rows) else 1
