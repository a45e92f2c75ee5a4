"""The threads that share out a kernel's outputs. How many there are changes the speed and no bit.

Plain threads, made on first use, that wait and work in compiled code without the interpreter's lock (`_hand_out`). A
forked child starts with none and makes its own; `set_num_threads(1)` ends them.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import struct
import threading
import time
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from samebits import _hand_out
from samebits._atomics import MAX_FLOATS, MAX_INTEGERS, WORD_BYTES
from samebits._canary import VALUES_ADDRESS, probe, refuse
from samebits._compile import Kernel

Argument = int | float | np.float32 | np.uint64
Call = tuple[Kernel, tuple[Argument, ...]]
MAX_THREADS = 256
WORTH_SHARING = 1 << 22  # multiply-adds, 60 us: handing out and waiting for the end takes 5 to 10
PATIENCE_NS = 200_000  # of a thread that waits awake; so long after the last work the process is idle
_library = ctypes.CDLL(None)  # loaded here: a sandboxed child may open nothing
_NO_FLOATS = (0,) * (MAX_FLOATS * 4 // WORD_BYTES)


def _address_of(function: str) -> int:
    """Where a function of the C library lies."""
    return ctypes.cast(getattr(_library, function), ctypes.c_void_p).value or 0


class _Pool:
    """Threads in `serve`, and the words that they and the callers share."""

    def __init__(self, num_threads: int) -> None:
        self._words = np.zeros(_hand_out.WORDS + _hand_out.LINE, dtype=np.int64)
        line_bytes = _hand_out.LINE * WORD_BYTES
        self.shared = -(-self._words.ctypes.data // line_bytes) * line_bytes
        self._settle()
        names = [f"samebits-{i}" for i in range(num_threads)]
        self._threads = [threading.Thread(target=self._serve, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def _settle(self) -> None:
        """Write what the words say for good."""
        functions = [_address_of(name) for name in ("sem_wait", "sem_post", "sched_yield", "clock_gettime")]
        settings = (*functions, time.CLOCK_MONOTONIC, probe.address(), VALUES_ADDRESS, PATIENCE_NS)
        begin = (self.shared - self._words.ctypes.data) // WORD_BYTES + _hand_out.SETTINGS
        self._words[begin : begin + len(settings)] = settings
        for semaphore in (_hand_out.REST, _hand_out.FINISHED):
            if _library.sem_init(ctypes.c_void_p(self.shared + semaphore * WORD_BYTES), 0, 0) != 0:
                raise OSError("samebits: this system has no semaphores in memory, so there is one thread only")

    def _serve(self) -> None:
        _hand_out.serve.unguarded(self.shared)  # asks the canary itself, before each call that it takes

    def close(self) -> None:
        _hand_out.dismiss.unguarded(self.shared)  # computes nothing
        for thread in self._threads:
            thread.join()


class _State:
    """This process's setting, and its pool if it has one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_threads = 1
        self.pool: _Pool | None = None

    def forget_threads(self) -> None:
        """In a forked child: the parent's threads are not here, and its lock may have been taken."""
        self.lock = threading.Lock()
        self.pool = None


_state = _State()
_memory = threading.local()
os.register_at_fork(after_in_child=_state.forget_threads)


def set_num_threads(num_threads: int) -> None:
    """How many threads an operator may use, this one included. The default is 1; results do not depend on it."""
    if not isinstance(num_threads, int) or isinstance(num_threads, bool):
        raise TypeError(f"set_num_threads: num_threads must be an int, not {type(num_threads).__name__}")
    if not 1 <= num_threads <= MAX_THREADS:
        raise ValueError(f"set_num_threads: num_threads must lie in 1..{MAX_THREADS}, not {num_threads}")
    with _state.lock:
        if num_threads == _state.num_threads:
            return
        _state.num_threads = num_threads
        _end_pool()


def _end_pool() -> None:
    """Under the lock, so that no batch is under way."""
    old, _state.pool = _state.pool, None
    if old is not None:
        old.close()


@atexit.register
def _end_pool_at_exit() -> None:
    """Before the interpreter takes down what the threads still look at."""
    with _state.lock:
        _end_pool()


def get_num_threads() -> int:
    """How many threads an operator may use."""
    return _state.num_threads


def run(calls: Sequence[Call]) -> None:
    """Make calls of kernels with disjoint outputs, the first one in this thread; return when all have ended.

    One caller has the pool at a time; another one meanwhile makes its calls alone, since the processors are taken.
    """
    if len(calls) == 1 or not _state.lock.acquire(blocking=False):
        _run_alone(calls)
        return
    try:
        if _state.pool is None and _state.num_threads > 1:
            _state.pool = _Pool(_state.num_threads - 1)
        pool = _state.pool
        faults = 0 if pool is None else _run_together(pool, calls)
    finally:
        _state.lock.release()
    if pool is None:
        _run_alone(calls)
    refuse(faults)


def _run_alone(calls: Sequence[Call]) -> None:
    for kernel, arguments in calls:
        kernel(*arguments)


def _run_together(pool: _Pool, calls: Sequence[Call]) -> int:
    """The faults of the canary."""
    words: list[int] = []
    for kernel, arguments in calls:
        words += _record(kernel, arguments)
    table = array("q", words)
    faults: int = _hand_out.hand_out(pool.shared, table.buffer_info()[0], len(calls))
    return faults


def _record(kernel: Kernel, arguments: tuple[Argument, ...]) -> list[int]:
    """A call as `call_record` reads it."""
    integers, bits = (arguments, _NO_FLOATS) if kernel.takes_integers else _sorted(kernel.kinds, arguments)
    spare = MAX_INTEGERS - len(integers)
    if spare < 0:
        raise ValueError(f"samebits: {kernel.name} has too many arguments to be shared out")
    return [kernel.address(), len(integers), *integers, *(0,) * spare, *bits]  # type: ignore[list-item]


def _sorted(kinds: Sequence[str], arguments: tuple[Argument, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Integers, those of 64 bits without a sign read as signed ones, and the bits of binary32 numbers, as words."""
    floats = [value for kind, value in zip(kinds, arguments, strict=True) if kind == "float32"]
    integers = [int(value) for kind, value in zip(kinds, arguments, strict=True) if kind != "float32"]
    bits = struct.pack(f"{MAX_FLOATS}f", *floats, *(0.0,) * (MAX_FLOATS - len(floats)))
    return tuple(value - (value >> 63 << 64) if value > 0 else value for value in integers), struct.unpack("4q", bits)


def shares(total: int, grain: int) -> list[tuple[int, int]]:
    """0..total in at most num_threads ranges (begin, end) of nearly equal size, each begin a multiple of grain."""
    units = -(-total // grain)
    count = max(1, min(_state.num_threads, units))
    edges = [min(total, units * i // count * grain) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def scratch(num_floats: int, call: int = 0) -> int:
    """The address of memory for one call of a batch, aligned to a cache line; valid until this thread's next batch."""
    places: list[tuple[np.ndarray[Any, Any], int]] = _memory.__dict__.setdefault("places", [])
    while len(places) <= call:
        places.append((np.empty(0, dtype=np.float32), 0))
    raw, address = places[call]
    if raw.size < num_floats + 16:
        raw = np.empty(num_floats + 16, dtype=np.float32)
        address = -(-raw.ctypes.data // 64) * 64
        places[call] = raw, address
    return address
