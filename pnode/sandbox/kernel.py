"""System calls that Python has no name for. The C library is loaded before any fork: a worker can open nothing."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(number: int, *arguments: object) -> int:
    """The result of a call; below 0, `ctypes.get_errno` tells why. Integers go in as longs."""
    longs = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return int(_libc.syscall(ctypes.c_long(number), *longs))


def must(number: int, *arguments: object, what: str) -> int:
    """As `call`. Raises OSError, naming `what` was asked for, where it fails."""
    found = call(number, *arguments)
    if found < 0:
        _raise(what)
    return found


def prctl(option: int, value: int) -> None:
    """Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        _raise(f"prctl({option})")


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
