"""Lanes: a thread pool for each kind of call, each bounded, so that no kind can silence another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Lane(ThreadPoolExecutor):
    """A thread pool that knows how many calls are in it.

    gRPC's own pool queues without bound: a call beyond its threads waits, unseen, until its deadline. Whoever submits
    looks at `full` first. gRPC submits from one thread alone, so nothing comes between the look and the submission.
    """

    def __init__(self, name: str, *, threads: int, queue: int = 0) -> None:
        super().__init__(threads, thread_name_prefix=f"pnode-{name}")
        self.name = name
        self.capacity = threads + queue
        # Told by whose connection each call came, where somebody asks.
        self.heard: Callable[[str], None] | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._num_calls = 0

    @property
    def num_calls(self) -> int:
        """Calls that run or wait for a thread."""
        return self._num_calls

    @property
    def full(self) -> bool:
        """Whether another call would have to be refused."""
        return self.num_calls >= self.capacity

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with self._lock:
            self._num_calls += 1
        try:
            future = super().submit(fn, *args, **kwargs)
        except RuntimeError:
            self._left()
            raise
        future.add_done_callback(lambda _: self._left())
        return future

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until no call is left, at most so long; whether that came about."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_calls, timeout_s)

    def _left(self) -> None:
        with self._lock:
            self._num_calls -= 1
            if not self._num_calls:
                self._changed.notify_all()
