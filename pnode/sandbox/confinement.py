"""What a forked process takes along from its parent, and ends with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from pnode.sandbox.kernel import prctl

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

# A terminal's ^C is the front's to drain; a closed socket and a full file are errors where they happen.
_IGNORED = (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)


def die_with_parent(parent: int) -> bool:
    """Have the kernel kill this process when its parent ends. False if the parent has ended already.

    The signal follows the *thread* that made this process, so a parent with many threads makes it from one that lasts.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def set_undumpable() -> None:
    """Other processes of this user may not trace this one or read its memory."""
    prctl(_PR_SET_DUMPABLE, 0)


def forbid_new_privileges() -> None:
    """No exec may gain privileges."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def reset_signals() -> None:
    """Default dispositions, but for `_IGNORED`; nothing blocked."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN if number in _IGNORED else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor from 3 up that is not in `keep`: the zygote's socket, other workers' pidfds."""
    first = 3
    for fd in sorted(set(keep)):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def num_threads() -> int:
    """Threads of this process now."""
    return len(os.listdir("/proc/self/task"))
