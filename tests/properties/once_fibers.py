"""A deterministic scheduler: many calls at once, each in a thread of its own, of which exactly one ever runs.

A fiber gives way only where it waits: for an answer, for its turn, for time. Who goes on is the scheduler's choice, and
with it the order of everything; the code under test is the real, blocking one. Time is counted in turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future
from concurrent.futures._base import DoneAndNotDoneFutures
from contextlib import contextmanager
from typing import Any, TypeVar

from pnode.transport.deadline import NOBODY_ELSE, Caller, Deadline

T = TypeVar("T")
FOREVER_S = 1e6
# What a wait of any length amounts to where something else may come first.
PATIENCE = 40


class Killed(BaseException):
    """The process in which this fiber ran is gone."""


class Stuck(AssertionError):
    """Nobody can go on: somebody waits for ever."""


class Fiber:
    """One call. `process`: what it dies with."""

    def __init__(self, scheduler: Scheduler, name: str, process: object, work: Callable[[], object]) -> None:
        self.name = name
        self.process = process
        self.until: Callable[[], bool] = lambda: True
        self.done = self.begun = False
        self.failed: BaseException | None = None
        self._killed = False
        self._work = work
        self._scheduler = scheduler
        self._go = threading.Semaphore(0)
        self._gave_way = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._killed:
                self._work()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to whoever resumed it
            self.failed = error
        self.done = True
        self._gave_way.release()

    def resume(self) -> None:
        """Let it go on until it gives way or ends. Raises what it ended with. For the scheduler."""
        self.begun = True
        self._go.release()
        self._gave_way.acquire()
        if self.failed is not None:
            failed, self.failed = self.failed, None
            raise failed

    def kill(self) -> None:
        """End it where it waits."""
        self._killed = True
        while not self.done:
            self.resume()

    def give_way(self, until: Callable[[], bool]) -> None:
        """Let others go on; come back once `until` holds. For the fiber itself."""
        if self._killed:
            raise Killed
        self.until = until
        self._gave_way.release()
        self._go.acquire()
        if self._killed:
            raise Killed


class Scheduler:
    """All fibers, and whose turn it is."""

    def __init__(self) -> None:
        self.turns = 0
        self.fibers: list[Fiber] = []
        self.current: Fiber | None = None
        self.on_turn: Callable[[], None] = lambda: None

    def spawn(self, name: str, process: object, work: Callable[[], object]) -> Fiber:
        """A fiber that waits for its first turn."""
        fiber = Fiber(self, name, process, work)
        self.fibers.append(fiber)
        return fiber

    def turn(self, choice: int) -> bool:
        """Let one fiber go on. False where none is left; raises Stuck where none can go on, however long it waits."""
        for _ in range(100):
            ready = [fiber for fiber in self.fibers if fiber.until()]
            if ready:
                self._resume(ready[choice % len(ready)])
                return True
            if not self.fibers:
                return False
            self.turns += PATIENCE
            self.on_turn()
        raise Stuck("nobody can go on: " + ", ".join(fiber.name for fiber in self.fibers))

    def _resume(self, fiber: Fiber) -> None:
        self.turns += 1
        self.current = fiber
        try:
            fiber.resume()
        finally:
            self.current = None
            self.fibers = [each for each in self.fibers if not each.done]
        self.on_turn()

    def kill(self, process: object) -> None:
        """End every fiber of a process."""
        self.kill_each([each for each in self.fibers if each.process is process])

    def kill_each(self, fibers: Collection[Fiber]) -> None:
        """End these fibers."""
        for fiber in fibers:
            before, self.current = self.current, fiber
            fiber.kill()
            self.current = before
        self.fibers = [each for each in self.fibers if not each.done]

    # For fibers

    def give_way(self, until: Callable[[], bool] = lambda: True) -> None:
        """Let others go on, until something holds."""
        assert self.current is not None, "only fibers wait"
        self.current.give_way(until)

    def sleep(self, turns: int = 1) -> None:
        """Let some time pass."""
        end = self.turns + turns
        self.give_way(lambda: self.turns >= end)

    def wait(
        self, futures: Collection[Future[T]], timeout: float | None = None, return_when: str = "ALL_COMPLETED"
    ) -> DoneAndNotDoneFutures[T]:
        """As concurrent.futures.wait."""
        end = self.turns + PATIENCE

        def enough() -> bool:
            done = [future for future in futures if future.done()]
            failed = return_when == FIRST_EXCEPTION and any(future.exception() for future in done)
            return len(done) == len(futures) or failed or (timeout is not None and self.turns >= end)

        self.give_way(enough)
        done = {future for future in futures if future.done()}
        return DoneAndNotDoneFutures(done, set(futures) - done)


class FiberExecutor(Executor):
    """As a thread pool, of one process."""

    def __init__(self, scheduler: Scheduler, process: object) -> None:
        self._scheduler = scheduler
        self._process = process

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Killed:
                raise
            except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
                future.set_exception(error)

        self._scheduler.spawn(getattr(fn, "__name__", "work"), self._process, work)
        return future


class FiberEvent(threading.Event):
    """An event that fibers wait for by turns."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None and not self.is_set():
            self._scheduler.sleep()
        return self.is_set()


class FiberDeadline(Deadline):
    """A deadline that never passes by itself; its caller may leave. Waits are turns."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Scheduler, caller: Caller = NOBODY_ELSE) -> None:
        super().__init__(FOREVER_S, clock=lambda: 0.0, caller=caller)
        self._scheduler = scheduler

    def pause(self, changed: threading.Condition) -> bool:
        if self.over:
            return False
        before = self._scheduler.turns
        with released(changed):
            self._scheduler.give_way(lambda: self._scheduler.turns > before + 1 or self.over)
        return True

    def passed_down(self) -> Deadline:
        return self

    def at_most(self, seconds: float) -> Deadline:
        del seconds
        return self


@contextmanager
def released(changed: threading.Condition) -> Iterator[None]:
    """Let go of a lock that is held, as waiting on its condition does."""
    changed.release()
    try:
        yield
    finally:
        changed.acquire()
