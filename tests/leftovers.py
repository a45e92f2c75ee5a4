"""What tests must not leave behind: processes, threads, shared memory. Found, named, and the processes ended.

A process is ours if it descends from us or carries our mark in its environment, which a daemon keeps when it leaves its
parents. Only what was not there before counts.
"""

from __future__ import annotations

import gc
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

# Read from the environment of processes. Nested test runs append to it, so that theirs are ours too.
MARK = "TESTS_MARK"

# What is on its way out gets so long to be gone.
GRACE_S = 5.0

# Begins a file in shared memory that is left on purpose by a nested run, whose mark follows. Test runs side by side
# would else see each other's.
NESTED = "nested"

_POLL_S = 0.05
_MEMFD = re.compile(r"/memfd:\S*")


class Leftovers:
    """Made before the tests; asked after them."""

    def __init__(self) -> None:
        self.mark = f"{os.environ.get(MARK, '')}/{uuid.uuid4().hex}"
        os.environ[MARK] = self.mark
        self._me = psutil.Process()
        self._before = set(self._found())

    def wait(self, grace_s: float) -> list[str]:
        """What is still there when `grace_s` is over, in words; processes among it are killed."""
        ends = time.monotonic() + grace_s
        while (found := self._new()) and time.monotonic() < ends:
            time.sleep(_POLL_S)
        for process in self._processes():
            process.kill()
        return found

    def _new(self) -> list[str]:
        gc.collect()
        return sorted(set(self._found()) - self._before)

    def _found(self) -> Iterator[str]:
        yield from (_described(process) for process in self._processes())
        yield from (f"thread {thread.name}" for thread in threading.enumerate() if _outlives(thread))
        yield from (f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if self._may_be_ours(name))
        yield from (f"open {target}" for target in _open_memfds())
        yield from (f"mapped {target}" for target in set(_MEMFD.findall(Path("/proc/self/maps").read_text())))

    def _may_be_ours(self, name: str) -> bool:
        return not name.startswith(NESTED) or name.startswith(nested_name(self.mark))

    def _processes(self) -> list[psutil.Process]:
        children = set(self._me.children(recursive=True))
        return [each for each in psutil.process_iter() if each in children or self._is_marked(each)]

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process != self._me and process.environ().get(MARK, "").startswith(self.mark)
        except (psutil.Error, OSError):
            # Somebody else's, or gone.
            return False


def nested_name(mark: str) -> str:
    """What begins the name of a file in shared memory that a run with this mark leaves on purpose."""
    return NESTED + mark.replace("/", ".")


def guarded(grace_s: float = GRACE_S) -> Iterator[None]:
    """The body of a fixture that fails if what it stands around leaves anything."""
    leftovers = Leftovers()
    yield
    found = leftovers.wait(grace_s)
    assert not found, "the tests left behind: " + "; ".join(found)


def _described(process: psutil.Process) -> str:
    try:
        return f"process {process.pid}: {' '.join(process.cmdline())[:200] or process.name()}"
    except psutil.ZombieProcess:
        return f"process {process.pid}, a zombie"
    except psutil.Error:
        return f"process {process.pid}"


def _outlives(thread: threading.Thread) -> bool:
    """Whether a thread would keep the interpreter from ending. The clock of pytest-timeout runs while we look."""
    is_ours = thread is not threading.main_thread() and not thread.name.startswith("pytest_timeout")
    return is_ours and not thread.daemon


def _open_memfds() -> Iterator[str]:
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith("/memfd:"):
            yield f"{descriptor}: {target}"
