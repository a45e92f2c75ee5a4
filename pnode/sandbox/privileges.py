"""A user of its own for every worker of a front that runs as root, and no capability left to anyone."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pnode.sandbox.kernel import must

# To change users, and to signal the changed one: when the zygote ends, when a limit is hit.
_CAP_KILL, _CAP_SETGID, _CAP_SETUID = 5, 6, 7
_NEEDED = 1 << _CAP_KILL | 1 << _CAP_SETGID | 1 << _CAP_SETUID

# Far above what people and packages use, and one for each process id that there can be.
_FIRST, _SPAN = 0x7000_0000, 1 << 22
# In a container with few users mapped: the last of them, below the kernel's overflow user.
_LEAST_SPAN = 4096

_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION = 0x20080522


class Users(NamedTuple):
    """A range of users that are nobody else's."""

    first: int
    span: int

    def of(self, pid: int) -> int:
        """The user for a process. No other living process has its number; in a small range, hardly any."""
        return self.first + pid % self.span


@cache
def users(status: Path = Path("/proc/self/status"), uid_map: Path = Path("/proc/self/uid_map")) -> Users | None:
    """Whom workers may become, or None where this process cannot change users. Asked once, by the zygote."""
    lines = (line.partition(":") for line in status.read_text(encoding="ascii", errors="replace").splitlines())
    effective = {name: text.strip() for name, _, text in lines}.get("CapEff", "0")
    if int(effective, 16) & _NEEDED != _NEEDED:
        return None
    mapped = [[int(word) for word in line.split()] for line in uid_map.read_text(encoding="ascii").splitlines()]
    for first, _, count in mapped:
        if first <= _FIRST and first + count >= _FIRST + _SPAN:
            return Users(_FIRST, _SPAN)
        if first <= 2 * _LEAST_SPAN and 3 * _LEAST_SPAN < count <= 1 << 16:
            return Users(first + count - 2 * _LEAST_SPAN, _LEAST_SPAN)
    return None


def become(user: int) -> None:
    """This user and its group, no others, for good."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def drop_capabilities() -> None:
    """All of them, which root in a container may still have, too."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    must(_CAPSET[platform.machine()], ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()), what="capset")
