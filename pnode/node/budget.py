"""The memory of all VNodes of a node together: the least of what is configured, of the cgroup, of what is free.

Read again at every admission, for owners start programs of their own: the budget then shrinks,
nothing new is let in, and what is here already goes on until memory runs short (pressure.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

# What VNodes may have together when the operator names no figure: half of the machine stays with its owner.
_DEFAULT_SHARE = 0.5
# Of what is free now, this much may be promised: the rest is for the system to breathe, and for the front itself.
_FREE_SHARE = 0.9


def cgroup_bytes(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The lowest memory limit of the cgroups that this process is in, of version 2 or 1; None where there is none."""
    found = []
    for line in _lines(membership) or ["0::/"]:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            folders, name = _upwards(root, path), "memory.max"
        elif "memory" in controllers.split(","):
            folders, name = _upwards(root / "memory", path), "memory.limit_in_bytes"
        else:
            continue
        found += [limit for folder in folders for limit in _limit(folder / name)]
    return min(found, default=None)


def _upwards(root: Path, path: str) -> list[Path]:
    """The cgroup's folder and all above it. In a container the path may be of the host: then only the root is there."""
    folder = root / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent == root or root in parent.parents)]


def _limit(file: Path) -> list[int]:
    return [int(text) for text in _lines(file)[:1] if text.isdecimal()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def machine_bytes() -> int:
    """The machine's memory, or the cgroup's limit where that is lower."""
    total = int(psutil.virtual_memory().total)
    limit = cgroup_bytes()
    return total if limit is None else min(total, limit)


def free_bytes() -> int:
    """What the kernel could give without taking it from anyone."""
    return int(psutil.virtual_memory().available)


class Budget:
    """The memory granted to all VNodes together, as of now."""

    def __init__(
        self,
        configured_bytes: int | None,
        *,
        machine: Callable[[], int] = machine_bytes,
        free: Callable[[], int] = free_bytes,
    ) -> None:
        self._configured_bytes = configured_bytes
        self._machine = machine
        self._free = free

    def most_bytes(self) -> int:
        """What may be promised in all on a machine that does nothing else."""
        total = self._machine()
        return int(total * _DEFAULT_SHARE) if self._configured_bytes is None else min(self._configured_bytes, total)

    def granted_bytes(self, taken_bytes: int = 0) -> int:
        """What may be promised in all now. `taken_bytes`: in the hands of VNodes, and therefore not free any more."""
        return min(self.most_bytes(), taken_bytes + int(_FREE_SHARE * self._free()))
