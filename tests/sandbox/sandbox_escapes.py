"""Ways out of the box. Each raises OSError where it is denied, and simply returns where it worked."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import resource
import socket
from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
_X86 = platform.machine() == "x86_64"
_PTRACE_ATTACH = 16
_CLONE_NEWUSER = 0x10000000
_SIGCHLD = 17
_BUFFER = ctypes.create_string_buffer(4096)


def _system(x86_64: int, aarch64: int, *arguments: object) -> None:
    longs = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if _LIBC.syscall(ctypes.c_long(x86_64 if _X86 else aarch64), *longs) < 0:
        raise OSError(ctypes.get_errno(), "denied")


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _open_written() -> None:
    with open("/tmp/pnode-escape", "w", encoding="ascii") as file:
        file.write("x")


def _connect() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0) as client:
        client.connect(("127.0.0.1", 9))


def _parent_environment() -> None:
    with open(f"/proc/{os.getppid()}/environ", "rb") as file:
        file.read()


def _exec_page() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def _make_executable() -> None:
    address = ctypes.addressof(_BUFFER)
    if _LIBC.mprotect(ctypes.c_void_p(address - address % 4096), ctypes.c_size_t(4096), 7) != 0:
        raise OSError(ctypes.get_errno(), "denied")


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "denied")


def _limit(which: int) -> None:
    """Python turns the kernel's refusal into ValueError."""
    try:
        resource.setrlimit(which, (1 << 40, 1 << 40))
    except ValueError as error:
        raise PermissionError(1, "denied") from error


def _signal_on_input() -> None:
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())


ESCAPES: dict[str, Callable[[], object]] = {
    "fork": _fork,
    "fork by clone": lambda: _system(56, 220, _SIGCHLD, 0, 0, 0, 0),
    "clone3": lambda: _system(435, 435, _BUFFER, 88),
    "exec": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
    "open to read": lambda: open("/etc/passwd", "rb"),  # noqa: SIM115
    "open to write": _open_written,
    "list a folder": lambda: os.listdir("/"),
    "stat a file": lambda: os.stat("/etc/passwd"),
    "make a folder": lambda: os.mkdir("/tmp/pnode-escape-folder"),
    "remove a file": lambda: os.unlink("/tmp/pnode-escape"),
    "change folder": lambda: os.chdir("/tmp"),
    "TCP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "Unix socket": lambda: socket.socket(socket.AF_UNIX),
    "socket pair": socket.socketpair,
    "connect": _connect,
    "pipe": os.pipe,
    "dup": lambda: os.dup(0),
    "eventfd": lambda: os.eventfd(0),
    "memfd": lambda: os.memfd_create("escape"),
    "read the parent's environment": _parent_environment,
    "read the parent's memory": lambda: _system(310, 270, os.getppid(), _BUFFER, 1, _BUFFER, 1, 0),
    "trace the parent": lambda: _system(101, 117, _PTRACE_ATTACH, os.getppid(), 0, 0),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "signal everyone": lambda: os.kill(-1, 0),
    "signal the parent's thread": lambda: _system(234, 131, os.getppid(), os.getppid(), 0),
    "open the parent's pidfd": lambda: os.pidfd_open(os.getppid()),
    "limit the parent": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU),
    "raise files": lambda: _limit(resource.RLIMIT_NOFILE),
    "raise processes": lambda: _limit(resource.RLIMIT_NPROC),
    "raise the size of files": lambda: _limit(resource.RLIMIT_FSIZE),
    "raise memory": lambda: _limit(resource.RLIMIT_AS),
    "become root": lambda: os.setresuid(0, 0, 0),
    "leave the session": lambda: _system(112, 157),
    "a namespace": lambda: _system(272, 97, _CLONE_NEWUSER),
    "mount": lambda: _system(165, 40, b"none", b"/tmp", b"tmpfs", 0, 0),
    "executable memory": _exec_page,
    "memory made executable": _make_executable,
    "be traceable": lambda: _prctl(4, 1),
    "outlive the parent": lambda: _prctl(1, 0),
    "another filter": lambda: _system(317, 277, 1, 0, _BUFFER),
    "signals by fcntl": _signal_on_input,
    "io_uring": lambda: _system(425, 425, 1, _BUFFER),
    "bpf": lambda: _system(321, 280, 0, _BUFFER, 64),
    "userfaultfd": lambda: _system(323, 282, 0),
    "perf events": lambda: _system(298, 241, _BUFFER, 0, -1, -1, 0),
    "keys": lambda: _system(250, 219, 0, -3, 0, 0, 0),
    "System V shared memory": lambda: _system(29, 194, 0, 4096, 0o1600),
    "an x32 call": lambda: _system(0x40000000 | 39, 1 << 20),
}
