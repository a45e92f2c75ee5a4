"""Asking a forked child what torch finds here: it may wake a GPU's driver, which neither front nor zygote may do."""

from __future__ import annotations

import math
import select
import time
from typing import Any

from pnode.errors import Unavailable
from pnode.sandbox import frames
from pnode.sandbox.child import Child
from pnode.sandbox.incarnation import Incarnation
from pnode.sandbox.limits import WorkerLimits
from pnode.sandbox.verdict import Doom

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
