"""What a joiner signs, and the challenges that make each signature good for one join.

A challenge is not kept when it is given away, so that strangers who ask for many cost nothing: it carries its time and
a code of the maker's. Only those that a join used are remembered, until they would have ended anyway.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable

from pnode.errors import Unauthenticated

_LIFE_S = 60.0
_HEAD = struct.Struct(">16sd")
_MAX_BYTES = 256


def statement(*, role: str, uuid: str, challenge: bytes, request: bytes, fingerprint: str) -> bytes:
    """The bytes that prove an identity. They name the authority as the joiner saw it: nobody can pass them on."""
    parts = (role.encode(), uuid.encode(), challenge, hashlib.sha256(request).digest(), fingerprint.encode())
    return b"pnode join 1\0" + b"".join(struct.pack(">I", len(part)) + part for part in parts)


class Challenges:
    """Makes challenges, and takes each back once. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        # By the time of their use, oldest first, so that forgetting them needs no search.
        self._used: OrderedDict[bytes, float] = OrderedDict()

    def make(self) -> bytes:
        """A challenge that is good for a minute."""
        head = _HEAD.pack(secrets.token_bytes(16), self._clock())
        return head + self._code(head)

    def use(self, challenge: bytes) -> None:
        """Take one back. Raises Unauthenticated where it is not ours, too old, or used before."""
        head, code = challenge[: _HEAD.size], challenge[_HEAD.size : _MAX_BYTES]
        if not hmac.compare_digest(self._code(head), code):
            raise Unauthenticated("the challenge was not given out by this orchestrator since its start")
        _, made_s = _HEAD.unpack(head)
        now = self._clock()
        if not 0.0 <= now - made_s < _LIFE_S:
            raise Unauthenticated(f"the challenge is older than {_LIFE_S:.0f} s; ask for another")
        with self._lock:
            self._forget(now)
            if head in self._used:
                raise Unauthenticated("the challenge was used before: a join cannot be replayed")
            self._used[head] = now

    def _forget(self, now: float) -> None:
        """What was used longer ago than a challenge lives is too old by itself."""
        while self._used and now - next(iter(self._used.values())) >= _LIFE_S:
            self._used.popitem(last=False)

    def _code(self, head: bytes) -> bytes:
        return hmac.digest(self._secret, head, "sha256")
