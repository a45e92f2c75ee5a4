"""Asking a forked child what torch finds here: it may wake a GPU's driver, which neither front nor zygote may do.

The first zygote's answer stands for this node. A zygote that takes its place has to give the same digest before it
serves a VNode whose bits are promised: whatever killed the first one may have hurt the machine, or its code.
"""

from __future__ import annotations

import logging
import math
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from pnode.errors import Unavailable
from pnode.sandbox import frames
from pnode.sandbox.child import Child
from pnode.sandbox.incarnation import Incarnation
from pnode.sandbox.limits import WorkerLimits
from pnode.sandbox.verdict import Doom

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 5.0

# No address space limit (the driver reserves much), but an end to everything else.
_LIMITS = WorkerLimits(memory_bytes=0, cpu_s=60.0, num_threads=1, device="cuda")


def ask(zygote: Incarnation, deadline_s: float) -> dict[str, Any]:
    """Fork a child that answers with one frame. Raises Unavailable where it does not."""
    ends = time.monotonic() + deadline_s
    child = Child(_LIMITS, lambda verdict: None)
    ours, theirs = frames.pair()
    with ours:
        with theirs:
            zygote.request(child, "probe", [theirs.fileno(), 2])
            child.wait_attached(deadline_s)
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        answered = poll.poll(max(0, math.ceil((ends - time.monotonic()) * 1000)))
        error = child.wait_end(Doom("wall_clock", "the probe took too long"), grace_s=1.0 if answered else 0.0)
        try:
            received = frames.receive(ours) if answered else None
        except frames.FrameError:
            received = None
        if received is None:
            raise Unavailable(f"torch could not be asked about this machine: {error.message}")
        return received.frame


class Witness:
    """What the first zygote found, and whether the one that serves now gives the same digest. Thread-safe.

    on_doubt: told, once for each zygote that does not.
    """

    def __init__(self, on_doubt: Callable[[str], None] | None) -> None:
        self._on_doubt = on_doubt
        self._lock = threading.Lock()
        self._found: dict[str, Any] | None = None
        self._proven: Incarnation | None = None
        self._refuted: Incarnation | None = None

    def ask(self, zygote: Incarnation, deadline_s: float) -> dict[str, Any]:
        """What torch finds here: asked once and remembered. Raises Unavailable."""
        with self._lock:
            if self._found is None:
                self._found, self._proven = ask(zygote, deadline_s), zygote
            return self._found

    def check(self, zygote: Incarnation, deadline_s: float) -> None:
        """Raises Unavailable unless this zygote computes what the first one did, as far as that was asked."""
        if zygote is self._proven or self._found is None:
            return
        if not self._lock.acquire(timeout=deadline_s):
            raise Unavailable("the self-test of a new zygote takes long", retry_after_s=_RETRY_AFTER_S)
        try:
            if zygote is not self._proven:
                self._prove(zygote, self._found, deadline_s)
        finally:
            self._lock.release()

    def _prove(self, zygote: Incarnation, first: dict[str, Any], deadline_s: float) -> None:
        if zygote is not self._refuted:
            now, before = (found.get("samebits", {}) for found in (ask(zygote, deadline_s), first))
            if now == before:
                log.info("zygote %d gives the digest of the first one", zygote.pid)
                self._proven = zygote
                return
            self._refuted = zygote
            why = f"zygote {zygote.pid} computes other bits than the first one did: {now}, and not {before}"
            log.error("%s", why)
            if self._on_doubt is not None:
                self._on_doubt(why)
        raise Unavailable("the self-test of the new zygote gives other bits than that of the first one")
