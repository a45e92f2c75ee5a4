"""The memory that the cgroups of this process allow and have in use, of version 2 or 1: a container's bounds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

# By version: the files with the limit and with what is in use, and the line of memory.stat that counts what the kernel
# gives back by itself, pages of files that nobody reads.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class Bound(NamedTuple):
    """One cgroup that limits memory. used_bytes: of all its processes, without what is given back for the asking."""

    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """What its processes may still take, all together."""
        return max(0, self.limit_bytes - self.used_bytes)


def bounds(root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[Bound]:
    """Of every cgroup that this process is in, and of those above it; none where nothing limits memory."""
    found = []
    for line in _lines(membership) or ["0::/"]:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            found += [_bound(folder, 2) for folder in _upwards(root, path)]
        elif "memory" in controllers.split(","):
            found += [_bound(folder, 1) for folder in _upwards(root / "memory", path)]
    return [bound for bound in found if bound is not None]


def _upwards(root: Path, path: str) -> list[Path]:
    """The cgroup's folder and all above it. In a container the path may be of the host: then only the root is there."""
    folder = root / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent == root or root in parent.parents)]


def _bound(folder: Path, version: int) -> Bound | None:
    limit, current, cached = _FILES[version]
    most = _number(folder / limit)
    if most is None:
        return None
    lines = [line.split() for line in _lines(folder / "memory.stat")]
    given_back = sum(int(words[1]) for words in lines if words[:1] == [cached] and words[-1].isdecimal())
    return Bound(most, max(0, (_number(folder / current) or 0) - given_back))


def _number(file: Path) -> int | None:
    text = "".join(_lines(file)[:1])
    return int(text) if text.isdecimal() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
