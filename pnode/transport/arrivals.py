"""Connections that came to a TLS port of members, and how many of them never brought a call.

gRPC keeps a handshake to itself: it asks for our certificate before it has read a byte, and says nothing of how that
ended. A member connects to call, and calls at once. So what came and brought no call was a stranger with no certificate
of this network, with another protocol, or with nothing to say.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from pnode.observe.counters import Counters
from pnode.transport.watch import Watch

log = logging.getLogger(__name__)

NO_CALL = "refused.connection.NO_CALL"

# Longer than a handshake may take.
_PATIENCE_S = 5.0
# In a flood of them connections are judged so many at a time.
_PAUSE_S = 0.05
# Connections by which calls came. One that is forgotten and calls again counts twice, and hides one that does not call.
_MAX_HEARD = 16_384


class Arrivals:
    """Counts into `refused.connection.NO_CALL`. Thread-safe.

    Which connection is silent is not known, only how many: the count may be late by those that have just begun to
    call, never too high by more than members who connect and take longer than `_PATIENCE_S` to call.
    """

    def __init__(self, watch: Watch, counters: Counters, clock: Callable[[], float] = time.monotonic) -> None:
        self._watch = watch
        self._counters = counters
        self._clock = clock
        self._lock = threading.Lock()
        self._came: deque[float] = deque()
        self._num_due = 0
        self._num_heard = 0
        self._num_silent = 0
        self._heard: OrderedDict[str, None] = OrderedDict()

    def came(self) -> None:
        """A connection was accepted; nothing is known of it."""
        with self._lock:
            first = not self._came
            self._came.append(self._clock())
        if first:
            self._watch.begin(_PATIENCE_S, self._judge)

    def heard(self, peer: str) -> None:
        """A call came over the connection of a peer, as gRPC names it."""
        if peer in self._heard:
            return
        with self._lock:
            if peer not in self._heard:
                self._num_heard += 1
                self._heard[peer] = None
                if len(self._heard) > _MAX_HEARD:
                    self._heard.popitem(last=False)

    def _judge(self) -> None:
        now = self._clock()
        with self._lock:
            while self._came and now - self._came[0] >= _PATIENCE_S:
                self._came.popleft()
                self._num_due += 1
            silent = max(0, self._num_due - self._num_heard - self._num_silent)
            before, self._num_silent = self._num_silent, self._num_silent + silent
            again_s = max(_PAUSE_S, self._came[0] + _PATIENCE_S - now) if self._came else None
        if silent:
            self._tell(before, before + silent)
        if again_s is not None:
            self._watch.begin(again_s, self._judge)

    def _tell(self, before: int, count: int) -> None:
        """As with all refusals: the 1st, the 2nd, the 4th and so on have a line of their own."""
        self._counters.add(NO_CALL, count - before)
        if count.bit_length() > before.bit_length():
            log.warning(
                "refused connections: they showed no certificate of this network, spoke another protocol or nothing, "
                "and brought no call (%d so far)",
                count,
            )
