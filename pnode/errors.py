"""The one error tree. Every refusal has a reason word, a sentence, and, where waiting helps, a retry-after.

    PNodeError                        INTERNAL
    +-- ConfigError                   one line and exit 2
    +-- BadRequest                    INVALID_ARGUMENT      malformed, truncated, wrong shape or dtype
    |   +-- SpecError                 INVALID_ARGUMENT      carries the path of the offending field
    |   +-- TooLarge                  INVALID_ARGUMENT      over a configured size
    +-- Unauthenticated               UNAUTHENTICATED       no proof of who calls, a spoiled or an expired one
    +-- PermissionDenied              PERMISSION_DENIED     known, and not allowed: another's token, VNode or address
    +-- ProtocolMismatch              FAILED_PRECONDITION   one side is too old for the other
    +-- UnknownVNode                  NOT_FOUND
    +-- UnknownRun                    NOT_FOUND
    +-- UnknownNode                   NOT_FOUND
    +-- StaleFence                    FAILED_PRECONDITION   an older generation or epoch: the caller is a zombie
    +-- StepMismatch                  FAILED_PRECONDITION   a step from the past or the future
    +-- LeaseLost                     FAILED_PRECONDITION   another driver holds the run
    +-- Conflict                      ALREADY_EXISTS        the same key with another request
    +-- Busy                          RESOURCE_EXHAUSTED    window, queue or admission; carries retry_after_s
    +-- LimitBreach                   RESOURCE_EXHAUSTED    a VNode went over its memory or CPU
    +-- WallClockBreach               DEADLINE_EXCEEDED     a VNode went over its wall clock
    +-- DeadlineExceeded              DEADLINE_EXCEEDED
    +-- Unavailable                   UNAVAILABLE           try again later or elsewhere
    |   +-- WorkerLost                UNAVAILABLE           the worker died; the VNode needs Restore
    |   +-- PeerUnavailable           UNAVAILABLE           a peer or the orchestrator does not answer
    |   +-- Draining                  UNAVAILABLE
    |   +-- StoreUnavailable          UNAVAILABLE
    |       +-- StoreFull             RESOURCE_EXHAUSTED    no room for it on the disk, or within limits.disk
    +-- BlobMissing                   NOT_FOUND
    +-- BlobCorrupt                   DATA_LOSS             digest or structure is wrong
    +-- PreconditionFailed            ABORTED               a compare-and-set lost the race

`transport/status.py` holds the one table from here to gRPC status codes; this module knows nothing of gRPC.
"""

from __future__ import annotations


class PNodeError(Exception):
    """Base of all errors that a caller may see. `reason` is one upper-case word for machines."""

    reason = "INTERNAL"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class ConfigError(PNodeError):
    """The configuration cannot be used: one line on stderr and exit 2."""

    reason = "CONFIG"


class BadRequest(PNodeError):
    """The request is malformed and will be refused again as it stands."""

    reason = "BAD_REQUEST"


class SpecError(BadRequest):
    """A VNode spec is refused. `path` names the offending field, as `operators[3].linear.in_features`."""

    reason = "BAD_SPEC"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class TooLarge(BadRequest):
    """Over a configured size."""

    reason = "TOO_LARGE"


class ReplyTooLarge(TooLarge):
    """The reply does not fit into one message: the same call in pieces gets it."""

    reason = "REPLY_TOO_LARGE"


class Unauthenticated(PNodeError):
    """Nobody knows who calls: no token or certificate, a spoiled one, or one whose time is over."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(PNodeError):
    """The caller is known, and this is not for it."""

    reason = "PERMISSION_DENIED"


class ProtocolMismatch(PNodeError):
    """Caller and callee have no version of the wire in common: one of them is too old."""

    reason = "PROTOCOL_MISMATCH"


class UnknownVNode(PNodeError):
    """No such VNode is allocated here."""

    reason = "UNKNOWN_VNODE"


class UnknownRun(PNodeError):
    """No such run."""

    reason = "UNKNOWN_RUN"


class UnknownNode(PNodeError):
    """No such node is a member."""

    reason = "UNKNOWN_NODE"


class StaleFence(PNodeError):
    """An older generation or epoch than ours: the caller is a zombie."""

    reason = "STALE_FENCE"


class StepMismatch(PNodeError):
    """A step from the past or the future."""

    reason = "STEP_MISMATCH"


class LeaseLost(PNodeError):
    """Another driver holds the lease of this run."""

    reason = "LEASE_LOST"


class Conflict(PNodeError):
    """The same idempotency key came with another request."""

    reason = "CONFLICT"


class Busy(PNodeError):
    """No room now: window, queue or admission. Carries `retry_after_s`."""

    reason = "BUSY"


class LimitBreach(PNodeError):
    """A VNode went over its memory or its CPU seconds."""

    reason = "LIMIT_BREACH"


class WallClockBreach(PNodeError):
    """A VNode's command went over its wall clock."""

    reason = "WALL_CLOCK_BREACH"


class DeadlineExceeded(PNodeError):
    """The caller's deadline passed before the work could begin or end."""

    reason = "DEADLINE_EXCEEDED"


class Unavailable(PNodeError):
    """Not now; later or elsewhere."""

    reason = "UNAVAILABLE"


class WorkerLost(Unavailable):
    """The VNode's worker died. The VNode needs Restore."""

    reason = "WORKER_LOST"


class PeerUnavailable(Unavailable):
    """A peer or the orchestrator does not answer."""

    reason = "PEER_UNAVAILABLE"


class Draining(Unavailable):
    """The node is on its way out and takes no new work."""

    reason = "DRAINING"


class StoreUnavailable(Unavailable):
    """The blob store does not answer."""

    reason = "STORE_UNAVAILABLE"


class StoreFull(StoreUnavailable):
    """The disk has no room for it, or its owner grants none. What stands there can still be read."""

    reason = "STORE_FULL"


class BlobMissing(PNodeError):
    """No blob under this key."""

    reason = "BLOB_MISSING"


class BlobCorrupt(PNodeError):
    """A blob's digest or structure is wrong."""

    reason = "BLOB_CORRUPT"


class PreconditionFailed(PNodeError):
    """A compare-and-set lost the race."""

    reason = "PRECONDITION_FAILED"
