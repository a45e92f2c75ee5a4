"""The filter of system calls for both processors: its numbers against the kernel's tables, and what it decides.

The filter of the other processor cannot be loaded here, so a small machine runs both, instruction by instruction.
"""

from __future__ import annotations

import errno
import json
import mmap
import resource
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnode.sandbox import bpf, landlock, privileges, seccomp
from pnode.sandbox.bpf import ALLOW, KILL_PROCESS, refuse_with

TABLES = json.loads((Path(__file__).parents[1] / "oracles" / "system_calls.json").read_text())
MACHINES = ("x86_64", "aarch64")
PID = 4711
EPERM = refuse_with(errno.EPERM)

# Allowed with conditions on their arguments, or refused in a way of their own.
CONDITIONAL = {
    "mmap": seccomp._MMAP, "mprotect": seccomp._MPROTECT, "clone": seccomp._CLONE, "clone3": seccomp._CLONE3,
    "kill": seccomp._KILL, "tgkill": seccomp._TGKILL, "prlimit64": seccomp._PRLIMIT, "fcntl": seccomp._FCNTL,
    "prctl": seccomp._PRCTL,
}  # fmt: skip


def machine(name: str) -> seccomp.Machine:
    return seccomp.Machine(*seccomp._MACHINES[name])


def run(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """The action of a filter: the few instructions of classic BPF that ours is made of, as the kernel defines them."""
    content = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    at = register = 0
    while True:
        opcode, if_true, if_false, k = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        if opcode == 0x20:
            (register,) = struct.unpack_from("<I", content, k)
        elif opcode == 0x54:
            register &= k
        elif opcode == 0x15:
            at += if_true if register == k else if_false
        elif opcode == 0x06:
            return int(k)
        else:
            raise AssertionError(hex(opcode))


def decides(name: str, call: str, *arguments: int, makes_code: bool = False) -> int:
    """What the worker PID on this processor gets for a call."""
    found = machine(name)
    code = seccomp._code(found, PID, makes_code=makes_code)
    return run(code, found.architecture, TABLES[name][call], *arguments)


@pytest.mark.parametrize("name", MACHINES)
def test_every_number_is_the_kernels(name: str) -> None:
    column = machine(name).column
    ours = {call: row[column] for call, row in {**seccomp._ALWAYS, **CONDITIONAL}.items()}
    assert ours == {call: TABLES[name].get(call) for call in ours}
    assert machine(name).seccomp == TABLES[name]["seccomp"]
    assert privileges._CAPSET[name] == TABLES[name]["capset"]
    assert TABLES[name]["landlock_create_ruleset"] == landlock._CREATE_RULESET
    assert TABLES[name]["landlock_restrict_self"] == landlock._RESTRICT_SELF


@pytest.mark.parametrize("name", MACHINES)
def test_whatever_is_not_listed_is_refused(name: str) -> None:
    for call in TABLES[name]:
        if call in CONDITIONAL:
            continue
        assert decides(name, call) == (ALLOW if call in seccomp._ALWAYS else EPERM), call
    assert not {"openat", "socket", "execve", "ptrace", "memfd_create", "io_uring_setup"} & set(seccomp._ALWAYS)


@pytest.mark.parametrize("name", MACHINES)
def test_signals_and_limits_are_for_itself(name: str) -> None:
    for call in ("kill", "tgkill"):
        assert decides(name, call, PID, 6) == ALLOW
        assert {decides(name, call, other, 6) for other in (0, 1, PID + 1, 2**32 - 1, 2**64 - 1)} == {EPERM}
    new = 0x7FFF_0000_1000
    assert decides(name, "prlimit64", 0, resource.RLIMIT_NOFILE, 0, new) == ALLOW, "reading"
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
        assert decides(name, "prlimit64", 0, limit, new) == ALLOW
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        assert decides(name, "prlimit64", 0, limit, new) == EPERM
    for target in (PID, 1, PID + 1):
        assert decides(name, "prlimit64", target, resource.RLIMIT_AS, new) == EPERM
    assert decides(name, "prlimit64", 0, resource.RLIMIT_NOFILE, 1 << 32) == EPERM, "the high word of the pointer"


@pytest.mark.parametrize("name", MACHINES)
def test_threads_and_no_processes_and_no_new_code(name: str) -> None:
    threads = 0x3D0F00  # as pthread_create asks
    assert decides(name, "clone", threads) == ALLOW
    for flags in (17, 0x4111, threads & ~0x10000, threads | 0x10000000, threads | 0x20000000, threads | 0x80):
        assert decides(name, "clone", flags) == EPERM, hex(flags)
    assert decides(name, "clone3", threads) == refuse_with(errno.ENOSYS)
    for call in ("mmap", "mprotect"):
        assert decides(name, call, 0, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == ALLOW
        assert decides(name, call, 0, 4096, mmap.PROT_READ | mmap.PROT_EXEC) == EPERM
        assert decides(name, call, 0, 4096, mmap.PROT_EXEC, makes_code=True) == ALLOW
    assert decides(name, "fcntl", 3, 1) == decides(name, "fcntl", 3, 3) == ALLOW
    assert {decides(name, "fcntl", 3, command) for command in (0, 2, 4, 6, 8, 1024, 1030)} == {EPERM}
    assert decides(name, "prctl", 15) == ALLOW
    assert {decides(name, "prctl", option) for option in (1, 4, 22, 38)} == {EPERM}


@pytest.mark.parametrize("name", MACHINES)
@given(number=st.integers(0, 2**32 - 1), architecture=st.integers(0, 2**32 - 1))
def test_another_architecture_ends_the_process(name: str, number: int, architecture: int) -> None:
    found = machine(name)
    code = seccomp._code(found, PID, makes_code=False)
    if architecture != found.architecture:
        assert run(code, architecture, number) == KILL_PROCESS
    if number not in TABLES[name].values():
        assert run(code, found.architecture, number) == EPERM


def test_a_block_never_jumps_out_of_itself() -> None:
    """Jumps are bytes; the longest block must fit them, and the whole the kernel's 4096 instructions."""
    for name in MACHINES:
        found = machine(name)
        assert max(len(bpf._block(rule)) for rule in seccomp.rules(found, PID, makes_code=False)) < 255
        assert len(seccomp._code(found, PID, makes_code=False)) // 8 <= 4096
