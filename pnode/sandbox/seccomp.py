"""The system calls of a worker: computing, its one socket, and its end. Whatever is not listed fails with EPERM.

A worker is asked through a socket that it has, about memory that it has: it needs no way to get at anything new.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
import resource
from typing import NamedTuple

from pnode.sandbox.bpf import KILL_PROCESS, Rule, Where, program, refuse_with
from pnode.sandbox.kernel import call, must

# By machine: the audit architecture, the number of seccomp(2), and the column in the tables below.
_MACHINES = {"x86_64": (0xC000003E, 317, 0), "aarch64": (0xC00000B7, 277, 1)}

# The architecture is checked first, and 32-bit calls end the process. The x32 calls of x86-64 have numbers with bit 30
# set, so none of them is listed.
_ALWAYS = {
    # Its socket, its memory and the standard streams: whatever is open is its own. No open, no socket, no pipe, no
    # memfd_create, no dup: this is why nothing can be added.
    "read": (0, 63), "write": (1, 64), "writev": (20, 66), "close": (3, 57), "lseek": (8, 62), "fstat": (5, 80),
    "recvmsg": (47, 212), "sendmsg": (46, 211), "recvfrom": (45, 207), "poll": (7, None), "ppoll": (271, 73),
    # Memory, within RLIMIT_AS. mmap and mprotect have conditions, below.
    "munmap": (11, 215), "mremap": (25, 216), "brk": (12, 214), "madvise": (28, 233),
    # Threads: locks, their start and their end.
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "membarrier": (324, 283),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "gettid": (186, 178),
    # Its own signal dispositions. SIGKILL and SIGXCPU past the hard limit cannot be caught.
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # Clocks, randomness, and what it knows of itself.
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "getrandom": (318, 278), "getrusage": (98, 165), "getpid": (39, 172),
    "getppid": (110, 173),
    # Its end.
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

_MMAP, _MPROTECT = (9, 222), (10, 226)
_CLONE, _CLONE3 = (56, 220), (435, 435)
_KILL, _TGKILL, _PRLIMIT = (62, 129), (234, 131), (302, 261)
_FCNTL, _PRCTL = (72, 25), (157, 167)

_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020080  # the second: every kind of new namespace
_F_GETFD, _F_GETFL = 1, 3
_PR_SET_NAME = 15

_SET_MODE_FILTER, _GET_ACTION_AVAIL, _TSYNC = 1, 2, 1


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class Machine(NamedTuple):
    """How this processor's calls are numbered."""

    architecture: int
    seccomp: int
    column: int

    @classmethod
    def here(cls) -> Machine | None:
        """None for a processor that we have no table for."""
        found = _MACHINES.get(platform.machine())
        return None if found is None else cls(*found)

    def number(self, row: tuple[int | None, ...]) -> int | None:
        """Of a row of the tables; None where this processor has no such call."""
        return row[self.column]


def _conditional(pid: int, *, makes_code: bool) -> list[tuple[tuple[int, int], tuple[Where, ...], int | None]]:
    """Calls that are allowed in part: the row, the conditions, and an errno where they are refused in their own way."""
    # All kernels were compiled before the fork. Only oneDNN, under plain torch, writes code as it goes.
    no_new_code = () if makes_code else (Where(2, 0, mask=mmap.PROT_EXEC),)
    null = (Where(2, 0), Where(2, 0, high=True))
    return [
        (_MMAP, no_new_code, None),
        (_MPROTECT, no_new_code, None),
        # Threads, and neither processes nor namespaces. clone3 has its flags in memory, which no filter can read:
        # ENOSYS makes the C library fall back to clone.
        (_CLONE, (Where(0, _CLONE_THREAD, mask=_CLONE_THREAD), Where(0, 0, mask=_CLONE_NEW)), None),
        (_CLONE3, (), errno.ENOSYS),
        # abort() and a fault's handler raise signals, and only here: other workers may have this user.
        (_KILL, (Where(0, pid),), None),
        (_TGKILL, (Where(0, pid),), None),
        # Limits may be read. Two soft ones may be raised to the hard ones that bind it: the processor time of the next
        # command, which the front measures itself, and the memory in which to say that there is none.
        (_PRLIMIT, (Where(0, 0), *null), None),
        (_PRLIMIT, (Where(0, 0), Where(1, resource.RLIMIT_AS)), None),
        (_PRLIMIT, (Where(0, 0), Where(1, resource.RLIMIT_CPU)), None),
        # Neither locks nor owners nor leases, and no way to turn no_new_privs or dumpable.
        (_FCNTL, (Where(1, _F_GETFD),), None),
        (_FCNTL, (Where(1, _F_GETFL),), None),
        (_PRCTL, (Where(0, _PR_SET_NAME),), None),
    ]


def rules(machine: Machine, pid: int, *, makes_code: bool) -> list[Rule]:
    """The allow-list of the worker with this process id."""
    listed = [Rule(number) for row in _ALWAYS.values() if (number := machine.number(row)) is not None]
    for row, conditions, refusal in _conditional(pid, makes_code=makes_code):
        number = machine.number(row)
        assert number is not None, "these calls exist everywhere"
        action = {} if refusal is None else {"action": refuse_with(refusal)}
        listed.append(Rule(number, conditions, **action))
    return listed


def is_offered() -> bool:
    """Whether this kernel filters calls, by all the actions used here."""
    machine = Machine.here()
    if machine is None:
        return False
    actions = [ctypes.c_uint32(action) for action in (refuse_with(0), KILL_PROCESS)]
    return all(call(machine.seccomp, _GET_ACTION_AVAIL, 0, ctypes.byref(action)) == 0 for action in actions)


def _code(machine: Machine, pid: int, *, makes_code: bool) -> bytes:
    return program(machine.architecture, rules(machine, pid, makes_code=makes_code), refuse_with(errno.EPERM))


def prepare() -> None:
    """Put most of the filter together before the fork; only the process id is missing."""
    machine = Machine.here()
    if machine is not None:
        for makes_code in (False, True):
            _code(machine, 0, makes_code=makes_code)


def close(pid: int, *, makes_code: bool) -> None:
    """Put the filter on every thread of this process, for good. Raises OSError where the kernel refuses it."""
    machine = Machine.here()
    if machine is None:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    code = _code(machine, pid, makes_code=makes_code)
    filter_ = _Filter(len(code) // 8, code)
    must(machine.seccomp, _SET_MODE_FILTER, _TSYNC, ctypes.byref(filter_), what="seccomp")
