"""Connections that came to a TLS port of members, and how many of them never brought a call.

gRPC keeps a handshake to itself: it asks for our certificate before it has read a byte, and says nothing of how that
ended. A member connects to call, and calls at once. So what came and brought no call was a stranger with no certificate
of this network, with another protocol, or with nothing to say.
"""

from __future__ import annotations

import logging
import math
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
# A connection that was not heard for so long may be another one from the same port.
_IDLE_S = 60.0
_MAX_HEARD = 16_384


class Arrivals:
    """Counts into `refused.connection.NO_CALL`. Thread-safe.

    Which connection is silent is not known, only how many: a call over a connection that is new here is taken to be
    that of the oldest which has brought none yet. One that wakes after `_IDLE_S` may so hide a stranger's.
    """

    def __init__(self, watch: Watch, counters: Counters, clock: Callable[[], float] = time.monotonic) -> None:
        self._watch = watch
        self._counters = counters
        self._clock = clock
        self._lock = threading.Lock()
        # When those came that have brought no call yet, oldest first.
        self._silent: deque[float] = deque()
        self._judged = True
        self._num_silent = 0
        self._heard: OrderedDict[str, float] = OrderedDict()

    def came(self) -> None:
        """A connection was accepted; nothing is known of it."""
        with self._lock:
            self._silent.append(self._clock())
            begins, self._judged = self._judged, False
        if begins:
            self._watch.begin(_PATIENCE_S, self._judge)

    def heard(self, peer: str) -> None:
        """A call came over the connection of a peer, as gRPC names it."""
        now = self._clock()
        if now - self._heard.get(peer, -math.inf) < _IDLE_S:
            self._heard[peer] = now
            return
        with self._lock:
            self._heard[peer] = now
            self._heard.move_to_end(peer)
            if len(self._heard) > _MAX_HEARD:
                self._heard.popitem(last=False)
            if self._silent:
                self._silent.popleft()

    def _judge(self) -> None:
        now = self._clock()
        with self._lock:
            before = self._num_silent
            while self._silent and now - self._silent[0] >= _PATIENCE_S:
                self._silent.popleft()
                self._num_silent += 1
            count = self._num_silent
            again_s = max(_PAUSE_S, self._silent[0] + _PATIENCE_S - now) if self._silent else None
            self._judged = again_s is None
        if count > before:
            self._tell(before, count)
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
