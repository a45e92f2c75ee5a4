"""What a failure report is worth. The hosting node is believed about its own worker; anybody else only raises doubt."""

from __future__ import annotations

from enum import Enum, auto

from pnode.errors import (
    BadRequest,
    Busy,
    Conflict,
    LeaseLost,
    LimitBreach,
    SpecError,
    StaleFence,
    StepMismatch,
    TooLarge,
    WallClockBreach,
    WorkerLost,
)
from pnode.orchestrator.topology import Location
from pnode.v1 import vnode_pb2

# The worker died; its node knows best.
_DEATHS = {kind.reason for kind in (WorkerLost, LimitBreach, WallClockBreach)}
# Refusals of a VNode that is well: the caller was wrong, late or early.
_REFUSALS = {
    kind.reason for kind in (StaleFence, StepMismatch, Busy, Conflict, LeaseLost, BadRequest, SpecError, TooLarge)
}


class Verdict(Enum):
    """What to do about a report."""

    IGNORE = auto()
    BELIEVE = auto()
    PROBE = auto()


def judge(reporter: str, fence: vnode_pb2.Fence, reason: str, location: Location | None, generation: int) -> Verdict:
    """`location` and `generation` are the current ones of the VNode reported.

    A report about an earlier generation or allocation is stale: recovery has already replaced what it speaks of.
    """
    current = location is not None and (fence.generation, fence.epoch) == (generation, location.epoch)
    if location is None or not current or reason in _REFUSALS:
        return Verdict.IGNORE
    if reason in _DEATHS and reporter == location.node_uuid:
        return Verdict.BELIEVE
    return Verdict.PROBE
