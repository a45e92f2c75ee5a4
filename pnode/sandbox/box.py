"""The box of a worker, closed from inside in this order, before a byte from outside is read. Each step says why.

What the worker needs was opened, imported and compiled before: from here on it can only compute and answer.
"""

from __future__ import annotations

import faulthandler
import os
from contextlib import suppress
from pathlib import Path

from pnode.sandbox import confinement, landlock, layers, privileges, seccomp
from pnode.sandbox.limits import WorkerLimits
from pnode.sandbox.verdict import EXIT_ORPHAN

# The kernel's out-of-memory killer takes the process with the highest score first, and 1000 is the highest.
_FIRST_TO_GO = "1000"


def prepare() -> None:
    """In the zygote: what is the same for all of its workers."""
    privileges.users()
    seccomp.prepare()


def close(bounds: WorkerLimits, *, parent: int, stderr: int) -> None:
    """Close the box around this process, which has one thread. Raises OSError where a layer cannot be had."""
    # While /proc/self is still ours: where memory runs out, a worker goes first and the owner's programs stay.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")
    # What it says at its end is kept by the front, up to a bound: a log that grows would fill the owner's disk.
    _redirect(stderr)
    if not bounds.is_cuda:
        # Nothing in it is secret, and nothing in it is needed any more.
        os.environ.clear()
        # Autograd looks for devices by itself, and a driver's threads have no place in a CPU worker.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # The user comes before what follows: the kernel forgets both on a change of users.
    if layers.UID in bounds.layers:
        _change_user()
    # A driver needs what the container gave it; everything else needs nothing.
    if not bounds.is_cuda:
        privileges.drop_capabilities()
    # No memory image for anyone of this user, no tracing; /proc/self belongs to root from here on.
    confinement.set_undumpable()
    # The parent may have ended before this was set: whoever is an orphan by now leaves.
    if not confinement.die_with_parent(parent):
        os._exit(EXIT_ORPHAN)
    # Needed by the two below, and what keeps a set-uid program from being a way out.
    confinement.forbid_new_privileges()
    if layers.LANDLOCK in bounds.layers:
        landlock.close()
    # Last, for it forbids all of the above.
    if layers.SECCOMP in bounds.layers:
        seccomp.close(os.getpid(), makes_code=bounds.makes_code)


def _redirect(stderr: int) -> None:
    for stream in (1, 2):
        os.dup2(stderr, stream)
    os.close(stderr)
    # A crash in compiled code leaves its stack there.
    faulthandler.enable(2)


def _change_user() -> None:
    found = privileges.users()
    if found is None:
        raise PermissionError("a user of its own was asked for, and this process may not change users")
    privileges.become(found.of(os.getpid()))
