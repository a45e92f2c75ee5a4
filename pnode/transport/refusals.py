"""What was refused: counted by method and reason, and logged so that a flood of refusals is no flood of lines."""

from __future__ import annotations

import logging

from grpc import StatusCode

from pnode.errors import PNodeError
from pnode.observe.counters import Counters
from pnode.transport.status import code_of

log = logging.getLogger(__name__)

# Logged are refusals for what a caller sent or is. Those for our own state, as Busy, are daily business.
_LOGGED = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.UNAUTHENTICATED,
        StatusCode.PERMISSION_DENIED,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.NOT_FOUND,
        StatusCode.ALREADY_EXISTS,
    }
)
_MAX_WORDS = 300


class Refusals:
    """Counts into `refused.method.REASON`. Methods and reasons are few: no caller can make this grow."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters

    def note(self, method: str, error: PNodeError, peer: str) -> None:
        """One more. The first of a kind is logged, and then the 2nd, the 4th, the 8th and so on."""
        kind = f"refused.{method}.{error.reason}"
        self.counters.add(kind)
        count = self.counters.value(kind)
        if count & (count - 1) == 0 and code_of(error) in _LOGGED:
            # As repr has it, so that nobody can write lines of his own into the log.
            words = repr(error.message[:_MAX_WORDS])
            log.warning("refused %s from %s: %s: %s (%d so far)", method, peer, error.reason, words, count)
