"""The memory that a worker has taken for itself, as anyone may read it, whatever user it is."""

from __future__ import annotations

from pathlib import Path


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that lies in no file; 0 once it is gone. Right after a fork it is that of its parent."""
    return _status_bytes(pid, "RssAnon:")


def own_bytes(pid: int, image_bytes: int) -> int:
    """What a child of the zygote has beyond `image_bytes`, the zygote's anonymous memory: its own and the arenas'.

    Pages of the image that it has written since are not seen, a few MiB; to know them, the kernel would have to walk
    through the whole of it.
    """
    return max(0, anonymous_bytes(pid) - image_bytes) + _status_bytes(pid, "RssShmem:")


def _status_bytes(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
