"""Errors on their way from a worker to the front. After an error of a request the worker lives on, after others not."""

from __future__ import annotations

from pnode.errors import BadRequest, BlobCorrupt, Conflict, PNodeError, SpecError, StepMismatch, TooLarge
from pnode.sandbox import frames
from pnode.sandbox.verdict import Doom, Kind

# A hostile message must not fill the logs.
_MAX_MESSAGE = 2_000
_MAX_TRACE = 16_000

_SURVIVABLE: dict[str, type[PNodeError]] = {
    kind.reason: kind for kind in (BadRequest, TooLarge, StepMismatch, BlobCorrupt, Conflict)
}
# The worker's last words, and how they are judged.
_LAST: dict[str, Kind] = {"LIMIT_BREACH": "memory", "INTERNAL": "exit"}


def is_survivable(error: PNodeError) -> bool:
    """Whether a worker that answered with this error is whole and goes on."""
    return isinstance(error, SpecError) or type(error).reason in _SURVIVABLE


def to_wire(error: PNodeError) -> frames.Frame:
    """A survivable error as the body of a reply."""
    body: frames.Frame = {"reason": type(error).reason, "message": error.message[:_MAX_MESSAGE]}
    if isinstance(error, SpecError):
        body |= {"path": error.path[:_MAX_MESSAGE], "why": error.why[:_MAX_MESSAGE]}
    return body


def last_words(reason: str, message: str, trace: str = "") -> frames.Frame:
    """The body of the reply of a worker that ends after it. `reason`: LIMIT_BREACH or INTERNAL."""
    return {"reason": reason, "message": message[:_MAX_MESSAGE], "trace": trace[-_MAX_TRACE:]}


def from_wire(body: frames.Frame) -> PNodeError | Doom:
    """The error to raise, or why the worker is about to end. Raises FrameError for a reason that it may not give."""
    reason = frames.text(body, "reason")
    message = frames.text(body, "message")[:_MAX_MESSAGE]
    if reason in _LAST:
        return Doom(_LAST[reason], message)
    if reason == SpecError.reason:
        return SpecError(frames.text(body, "path")[:_MAX_MESSAGE], frames.text(body, "why")[:_MAX_MESSAGE])
    kind = _SURVIVABLE.get(reason)
    if kind is None:
        raise frames.FrameError("a reply has an error of an unknown kind")
    return kind(message)


def trace_of(body: frames.Frame) -> str:
    """The worker's own traceback, for the log alone."""
    trace = body.get("trace")
    return trace[-_MAX_TRACE:] if isinstance(trace, str) else ""
