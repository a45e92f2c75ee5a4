"""Bad weather on purpose: calls of this process are lost, doubled, delayed and overtaken on their way.

It is made where a call meets the wire, so both ends see what a bad network would show them: servicers really get
duplicates, callers really wait. For the devnet and tests; a process has none unless it was told to.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pnode.errors import PeerUnavailable, PNodeError
from pnode.transport.codec import Buffer
from pnode.transport.deadline import Deadline

log = logging.getLogger(__name__)

# One exchange: a request goes out, a reply comes in.
Send = Callable[[Deadline], Buffer]

_LONGEST_DELAY_S = 0.2
# A duplicate may come after the original was answered, and even after what followed it.
_LONGEST_LAG_S = 0.5
# A call that is to be overtaken waits so long for another one to the same peer, and then lets that go ahead.
_LONGEST_HOLD_S = 0.1
_HEAD_START_S = 0.01
_MAX_DUPLICATES = 64


@dataclass(frozen=True)
class Rates:
    """How often each befalls a call, from 0 to 1."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    reorder: float = 0.0

    @property
    def calm(self) -> bool:
        """Whether nothing befalls anybody."""
        return not (self.drop or self.duplicate or self.delay or self.reorder)


@dataclass(frozen=True)
class _Fate:
    """What befalls one call. Times in seconds, None: it does not."""

    drop_request: bool
    drop_reply: bool
    lag_s: float | None
    delay_s: float | None
    delay_reply: bool
    hold: bool


class Weather:
    """The weather of one process. `seed` decides what befalls the n-th call; `on_fault` is told each kind as it comes.

    A message that is lost breaks its connection: the caller learns at once that it will get no answer, and not whether
    the call was carried out.
    """

    def __init__(self, rates: Rates, seed: str, on_fault: Callable[[str], None] = lambda kind: None) -> None:
        self._rates = rates
        self._rng = random.Random(seed)  # noqa: S311 - where to hurt, not what to hide
        self._on_fault = on_fault
        self._lock = threading.Lock()
        self._held: dict[str, list[threading.Event]] = {}
        self._duplicates = threading.BoundedSemaphore(_MAX_DUPLICATES)

    def carry(self, send: Send, peer: str, what: str, deadline: Deadline) -> Buffer:
        """Send a call through the weather. Raises PeerUnavailable for what was lost, else what `send` raises."""
        fate = self._fate()
        if fate.hold:
            self._tell("reorder", peer, what)
            self._let_others_ahead(peer, deadline)
        if fate.lag_s is not None:
            self._tell("duplicate", peer, what)
            self._send_again(send, fate.lag_s, deadline)
        if fate.delay_s is not None:
            self._tell("delay", peer, what)
            if not fate.delay_reply:
                time.sleep(min(fate.delay_s, deadline.left_s()))
        self._go_ahead(peer)
        return self._exchange(send, fate, peer, what, deadline)

    def _exchange(self, send: Send, fate: _Fate, peer: str, what: str, deadline: Deadline) -> Buffer:
        if fate.drop_request:
            self._tell("drop", peer, what)
            raise PeerUnavailable(f"the request {what} to {peer} was lost, on purpose")
        reply = send(deadline)
        if fate.delay_s is not None and fate.delay_reply:
            time.sleep(min(fate.delay_s, deadline.left_s()))
        if fate.drop_reply:
            self._tell("drop", peer, what)
            raise PeerUnavailable(f"the reply to {what} of {peer} was lost, on purpose")
        return reply

    def _fate(self) -> _Fate:
        with self._lock:
            draw = self._rng.random
            dropped, doubled = draw() < self._rates.drop, draw() < self._rates.duplicate
            delayed, held = draw() < self._rates.delay, draw() < self._rates.reorder
            request_or_reply, lag, delay, which = draw(), draw(), draw(), draw()
        return _Fate(
            drop_request=dropped and request_or_reply < 0.5,
            drop_reply=dropped and request_or_reply >= 0.5,
            # Every other duplicate goes out with its original, the rest come late.
            lag_s=max(0.0, 2 * lag - 1) * _LONGEST_LAG_S if doubled else None,
            delay_s=delay * _LONGEST_DELAY_S if delayed else None,
            delay_reply=which < 0.5,
            hold=held,
        )

    def _tell(self, kind: str, peer: str, what: str) -> None:
        log.debug("%s: %s to %s, on purpose", kind, what, peer)
        self._on_fault(kind)

    # Duplicates

    def _send_again(self, send: Send, lag_s: float, deadline: Deadline) -> None:
        if self._duplicates.acquire(blocking=False):
            again = threading.Thread(
                target=self._duplicate, args=(send, lag_s, deadline.left_s()), name="duplicate", daemon=True
            )
            again.start()

    def _duplicate(self, send: Send, lag_s: float, left_s: float) -> None:
        try:
            time.sleep(min(lag_s, left_s))
            # A deadline of its own: a packet that was doubled does not know that its sender gave up.
            send(Deadline.after(left_s))
        except PNodeError as error:
            log.debug("a duplicate was refused: %s", error)
        finally:
            self._duplicates.release()

    # Overtaking

    def _let_others_ahead(self, peer: str, deadline: Deadline) -> None:
        overtaken = threading.Event()
        with self._lock:
            self._held.setdefault(peer, []).append(overtaken)
        if overtaken.wait(min(_LONGEST_HOLD_S, deadline.left_s())):
            time.sleep(min(_HEAD_START_S, deadline.left_s()))

    def _go_ahead(self, peer: str) -> None:
        with self._lock:
            held = self._held.pop(peer, [])
        for waiting in held:
            waiting.set()
