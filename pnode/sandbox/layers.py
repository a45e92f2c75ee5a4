"""The layers of a worker's box that a kernel or a user may lack: which ones there are here, and which ones must be.

The rest is always there: limits on memory, processor time and files, a session of its own, no_new_privs, no
descriptors and no environment but its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from pnode.errors import ConfigError
from pnode.sandbox import landlock, privileges, seccomp

SECCOMP = "seccomp"  # an allow-list of system calls
LANDLOCK = "landlock"  # no files and no network, by what a call would reach
UID = "uid"  # a user of its own for every worker
ALL = (SECCOMP, LANDLOCK, UID)

_WHY_NOT = {
    SECCOMP: "this kernel or this processor filters no system calls",
    LANDLOCK: "this kernel has no Landlock, or it is switched off",
    UID: "the node does not run as root, so all of its workers are one user",
}


def found() -> tuple[str, ...]:
    """Those that this machine offers to this process."""
    offered = {
        SECCOMP: seccomp.is_offered(),
        LANDLOCK: landlock.version() > 0,
        UID: privileges.users() is not None,
    }
    return tuple(name for name in ALL if offered[name])


def check(offered: Iterable[str], required: Iterable[str]) -> None:
    """Raises ConfigError for a required layer that is not offered."""
    for name in required:
        if name not in offered:
            raise ConfigError(f"sandbox.require: no {name} here: {_WHY_NOT[name]}")


def missing(offered: Iterable[str]) -> dict[str, str]:
    """The others, each with the reason."""
    return {name: why for name, why in _WHY_NOT.items() if name not in offered}


def on_device(offered: Iterable[str], device: str) -> tuple[str, ...]:
    """Those that a worker on `device` gets. A GPU's driver opens devices and libraries when it pleases: none, there."""
    return () if device == "cuda" else tuple(offered)
