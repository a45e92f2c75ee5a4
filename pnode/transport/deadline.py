"""Deadlines: every call has one, and a chain passes down what is left of it. With it goes the caller, who may leave."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from pnode.errors import DeadlineExceeded


class Call(Protocol):
    """The part of a gRPC servicer context that a deadline is made from."""

    def time_remaining(self) -> float | None: ...
    def add_callback(self, callback: Callable[[], None]) -> bool: ...


def _nothing() -> None:
    pass


class Caller:
    """Who waits for an answer: a name to be fair by, and whether it still waits. Thread-safe."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        # Nobody waits any more: the call was cancelled, lost its connection, or its own deadline passed.
        self.gone = False
        self._lock = threading.Lock()
        self._hand_over: Callable[[], None] = _nothing
        self._listeners: dict[object, Callable[[], object]] = {}

    @classmethod
    def of_call(cls, call: Call, name: str = "") -> Caller:
        """Whoever made a call that came in. It leaves when the call ends, however it ends."""
        caller = cls(name)
        if not call.add_callback(caller.leave):
            caller.leave()
        return caller

    def leave(self) -> None:
        """Nobody waits from here on; those who want to hear of it do so at once, in this thread."""
        with self._lock:
            self.gone = True
            listeners, self._listeners = list(self._listeners.values()), {}
            # Whoever keeps a deadline longer than its call lasts must not keep the call and its message too.
            self._hand_over = _nothing
        for listener in listeners:
            listener()

    def carry(self, hand_over: Callable[[], None]) -> None:
        """What to call when somebody else takes the memory of the call's message into account."""
        with self._lock:
            if not self.gone:
                self._hand_over = hand_over

    def hand_over(self) -> None:
        """Whoever admitted the work has memory reserved for it: the message is counted there from here on."""
        self._hand_over()

    @contextmanager
    def telling(self, listener: Callable[[], object]) -> Iterator[None]:
        """While this is held, `listener` is called once the caller leaves; at once where it has left already."""
        token = object()
        with self._lock:
            left = self.gone
            if not left:
                self._listeners[token] = listener
        if left:
            listener()
        try:
            yield
        finally:
            with self._lock:
                self._listeners.pop(token, None)


# This process itself: it never leaves.
NOBODY_ELSE = Caller()

# A callee answers so much sooner than its caller gives up, that its status still arrives: at most a tenth of the time.
_MARGIN_S = 0.05


class Deadline:
    """A moment on a clock (seconds) by which a call must have ended, and who waits for it."""

    __slots__ = ("_at_s", "_clock", "caller")

    def __init__(
        self, at_s: float, *, clock: Callable[[], float] = time.monotonic, caller: Caller = NOBODY_ELSE
    ) -> None:
        if not math.isfinite(at_s):
            raise ValueError("a deadline is a finite moment: nothing waits for ever")
        self._at_s = at_s
        self._clock = clock
        self.caller = caller

    @classmethod
    def after(
        cls, seconds: float, *, clock: Callable[[], float] = time.monotonic, caller: Caller = NOBODY_ELSE
    ) -> Deadline:
        """The deadline so many seconds from now."""
        return cls(clock() + seconds, clock=clock, caller=caller)

    @classmethod
    def of_call(
        cls,
        call: Call,
        *,
        default_s: float,
        max_s: float,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> Deadline:
        """The deadline of a call that came in: the caller's own, at most `max_s`; `default_s` where it set none."""
        remaining_s = call.time_remaining()
        # gRPC gives calls without a deadline one some 292 thousand million years away.
        seconds = default_s if remaining_s is None or remaining_s > _FOREVER_S else remaining_s
        return cls(clock() + min(seconds, max_s), clock=clock, caller=Caller.of_call(call, name))

    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._at_s - self._clock())

    @property
    def passed(self) -> bool:
        """Whether the moment has come."""
        return self._clock() >= self._at_s

    @property
    def cancelled(self) -> bool:
        """Whether the caller has gone."""
        return self.caller.gone

    @property
    def over(self) -> bool:
        """Whether there is no point in going on."""
        return self.passed or self.cancelled

    def check(self) -> None:
        """Raise DeadlineExceeded when the deadline has passed or nobody waits for the answer."""
        if self.passed:
            raise DeadlineExceeded("the deadline of the call has passed")
        if self.cancelled:
            raise DeadlineExceeded("the caller no longer waits for the answer")

    def pause(self, changed: threading.Condition) -> bool:
        """Wait once on `changed`, whose lock is held; then look again. False, without waiting, when it is over."""

        def wake() -> None:
            with changed:
                changed.notify_all()

        with self.caller.telling(wake):
            if self.over:
                return False
            changed.wait(self.left_s())
        return True

    def await_event(self, event: threading.Event) -> None:
        """Wait until `event` is set, or it is over. A caller that leaves sets it too, for nobody waits for it then."""
        with self.caller.telling(event.set):
            while not event.is_set() and not self.over:
                event.wait(self.left_s())

    def at_most(self, seconds: float) -> Deadline:
        """This deadline, or the one so many seconds from now if that is sooner."""
        return Deadline(min(self._at_s, self._clock() + seconds), clock=self._clock, caller=self.caller)

    def passed_down(self) -> Deadline:
        """What is left for a call that this one makes: a little less, so that its status comes before we give up."""
        return Deadline(self._at_s - min(_MARGIN_S, self.left_s() / 10), clock=self._clock, caller=self.caller)

    def __repr__(self) -> str:
        return f"Deadline(left_s={self.left_s():.3f})"


# Ten years: more than any caller means, far less than gRPC's "no deadline".
_FOREVER_S = 10 * 365 * 86_400.0
