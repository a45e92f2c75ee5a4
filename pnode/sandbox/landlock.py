"""Landlock: no file, no TCP port, no abstract socket and no signal outside. A worker has no folder: no path is let in.

It stands beside seccomp, not instead of it: what one of them overlooks the other one still denies. Seccomp judges
numbers of calls and knows no paths; Landlock judges what a call would reach, however it gets there.
"""

from __future__ import annotations

import ctypes
import os

from pnode.sandbox.kernel import call, must

# The same numbers on every architecture.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_VERSION = 1

# By version of the interface: how many of the rights on files exist, from bit 0 up.
_NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_MOST_FILE_RIGHTS = 16
_BIND_AND_CONNECT = 0b11  # TCP, from version 4
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11  # from version 6


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr. Older kernels know its beginning only."""

    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


def version() -> int:
    """Of the kernel's interface; 0 where it has none, or it is switched off."""
    return max(0, call(_CREATE_RULESET, None, 0, _VERSION))


def close() -> None:
    """Deny all of it to this process for good. `no_new_privs` must be set. Raises OSError."""
    found = version()
    ruleset = _Ruleset(files=(1 << _NUM_FILE_RIGHTS.get(found, _MOST_FILE_RIGHTS)) - 1)
    size = _Ruleset.files.size
    if found >= 4:
        ruleset.net, size = _BIND_AND_CONNECT, size + _Ruleset.net.size
    if found >= 6:
        ruleset.scoped, size = _ABSTRACT_SOCKETS_AND_SIGNALS, size + _Ruleset.scoped.size
    fd = must(_CREATE_RULESET, ctypes.byref(ruleset), size, 0, what="landlock_create_ruleset")
    try:
        must(_RESTRICT_SELF, fd, 0, what="landlock_restrict_self")
    finally:
        os.close(fd)
