"""The threads that share out a kernel's outputs. How many there are changes the speed and no bit.

Plain threads, made on first use, that run compiled code without the interpreter's lock. A forked child starts with
none and makes its own; `set_num_threads(1)` ends them.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np

Job = Callable[[], None]
MAX_THREADS = 256


class _Batch:
    """Jobs handed out together, and how each of them ended. A queue tells it: to wait for one costs little."""

    def __init__(self) -> None:
        self._ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def run(self, job: Job) -> None:
        """Run one job; keep its error for the one who waits."""
        end: BaseException | None = None
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - carried to the waiting thread, which raises it
            end = error
        self._ends.put(end)

    def wait(self, num_jobs: int) -> None:
        """Return when all jobs have ended; raise what the first of them raised."""
        ends = [self._ends.get() for _ in range(num_jobs)]
        for end in ends:
            if end is not None:
                raise end


class _Pool:
    """Threads that take jobs from one queue until told to end."""

    def __init__(self, num_threads: int) -> None:
        self._jobs: SimpleQueue[tuple[_Batch, Job] | None] = SimpleQueue()
        names = [f"samebits-{i}" for i in range(num_threads)]
        self._threads = [threading.Thread(target=self._serve, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while (item := self._jobs.get()) is not None:
            batch, job = item
            batch.run(job)

    def submit(self, batch: _Batch, job: Job) -> None:
        self._jobs.put((batch, job))

    def close(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
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
        old, _state.pool, _state.num_threads = _state.pool, None, num_threads
        if old is not None:
            old.close()


def get_num_threads() -> int:
    """How many threads an operator may use."""
    return _state.num_threads


def run(jobs: Sequence[Job]) -> None:
    """Run jobs with disjoint outputs, the first one in this thread; return when all have ended."""
    if len(jobs) == 1:
        jobs[0]()
        return
    batch = _Batch()
    with _state.lock:  # so that a pool is not closed between finding it and giving it work
        if _state.pool is None and _state.num_threads > 1:
            _state.pool = _Pool(_state.num_threads - 1)
        kept = jobs if _state.pool is None else jobs[:1]
        for job in jobs[len(kept) :]:
            assert _state.pool is not None
            _state.pool.submit(batch, job)
    for job in kept:
        batch.run(job)
    batch.wait(len(jobs))


def shares(total: int, grain: int) -> list[tuple[int, int]]:
    """0..total in at most num_threads ranges (begin, end) of nearly equal size, each begin a multiple of grain."""
    units = -(-total // grain)
    count = max(1, min(_state.num_threads, units))
    edges = [min(total, units * i // count * grain) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def scratch(num_floats: int) -> int:
    """The address of this thread's scratch memory, aligned to a cache line; valid until its next call."""
    raw = getattr(_memory, "floats", None)
    if raw is None or raw.size < num_floats + 16:
        raw = _memory.floats = np.empty(num_floats + 16, dtype=np.float32)
        _memory.address = -(-raw.ctypes.data // 64) * 64
    address: int = _memory.address
    return address
