"""The one table between the error tree and gRPC status codes, and the way there and back.

An error crosses as google.rpc.Status with ErrorInfo (its reason word, domain "pnode") and, where waiting helps,
RetryInfo; so any gRPC client can read it, and ours raises the same class again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no stubs
from grpc import StatusCode
from grpc_status import rpc_status

from pnode import errors
from pnode.errors import PNodeError

DOMAIN = "pnode"

# A class that is not listed has the code of its nearest listed ancestor.
CODES: dict[type[PNodeError], StatusCode] = {
    errors.PNodeError: StatusCode.INTERNAL,
    errors.ConfigError: StatusCode.FAILED_PRECONDITION,
    errors.BadRequest: StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: StatusCode.PERMISSION_DENIED,
    errors.ProtocolMismatch: StatusCode.FAILED_PRECONDITION,
    errors.UnknownVNode: StatusCode.NOT_FOUND,
    errors.UnknownRun: StatusCode.NOT_FOUND,
    errors.UnknownNode: StatusCode.NOT_FOUND,
    errors.StaleFence: StatusCode.FAILED_PRECONDITION,
    errors.StepMismatch: StatusCode.FAILED_PRECONDITION,
    errors.LeaseLost: StatusCode.FAILED_PRECONDITION,
    errors.Conflict: StatusCode.ALREADY_EXISTS,
    errors.Busy: StatusCode.RESOURCE_EXHAUSTED,
    errors.LimitBreach: StatusCode.RESOURCE_EXHAUSTED,
    errors.WallClockBreach: StatusCode.DEADLINE_EXCEEDED,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.StoreFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.BlobMissing: StatusCode.NOT_FOUND,
    errors.BlobCorrupt: StatusCode.DATA_LOSS,
    errors.PreconditionFailed: StatusCode.ABORTED,
}

# For statuses without our details. They come from gRPC itself, from a stranger, or from a newer peer with a reason
# word that we do not know. INTERNAL and UNKNOWN without details are a broken connection (a reset stream, a server
# that does not speak HTTP/2), since every error that a servicer of ours raises carries details.
_BARE: dict[StatusCode, type[PNodeError]] = {
    StatusCode.UNAVAILABLE: errors.PeerUnavailable,
    StatusCode.CANCELLED: errors.PeerUnavailable,
    StatusCode.INTERNAL: errors.PeerUnavailable,
    StatusCode.UNKNOWN: errors.PeerUnavailable,
    StatusCode.UNIMPLEMENTED: errors.PeerUnavailable,
    StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    StatusCode.RESOURCE_EXHAUSTED: errors.Busy,
    StatusCode.INVALID_ARGUMENT: errors.BadRequest,
    StatusCode.OUT_OF_RANGE: errors.BadRequest,
    StatusCode.ALREADY_EXISTS: errors.Conflict,
    StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    StatusCode.ABORTED: errors.PreconditionFailed,
    StatusCode.DATA_LOSS: errors.BlobCorrupt,
}

# gRPC refuses trailers over 8 KiB. The sentence goes out twice, once percent-encoded (three bytes for one) and once
# in base64, and a request may have chosen its words; these bounds keep the whole under 6 KiB.
_MAX_MESSAGE_BYTES = 1024
_MAX_PATH_BYTES = 256
# What a peer may make us wait for, at most.
_MAX_RETRY_AFTER_S = 3600.0


def _tree(root: type[PNodeError]) -> Iterator[type[PNodeError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def _by_reason() -> dict[str, type[PNodeError]]:
    return {found.reason: found for found in _tree(PNodeError) if found.__module__ == errors.__name__}


_BY_REASON = _by_reason()


def code_of(error: PNodeError) -> StatusCode:
    """The status code of an error."""
    return next(CODES[ancestor] for ancestor in type(error).__mro__ if ancestor in CODES)


def to_status(error: PNodeError) -> status_pb2.Status:
    """An error as google.rpc.Status. Long sentences and paths are cut, so that they fit into trailers."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    message = _clipped(error.message, _MAX_MESSAGE_BYTES)
    if isinstance(error, errors.SpecError):
        info.metadata["path"] = _clipped(error.path, _MAX_PATH_BYTES)
        message = _clipped(f"{info.metadata['path']}: {error.why}", _MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=code_of(error).value[0], message=message)
    status.details.add().Pack(info)
    if error.retry_after_s is not None and math.isfinite(error.retry_after_s):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(_bounded(error.retry_after_s) * 1e9))
        status.details.add().Pack(retry)
    return status


def abort(context: grpc.ServicerContext, error: PNodeError) -> NoReturn:
    """End a call with the status of `error`."""
    context.abort_with_status(rpc_status.to_status(to_status(error)))
    raise AssertionError("abort_with_status does not return")


def from_status(status: status_pb2.Status) -> PNodeError | None:
    """The error that a peer packed, or None where the status holds none that we know."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        try:
            # Unpack leaves a message of another type alone and returns False.
            _ = detail.Unpack(info) or detail.Unpack(retry)
        except DecodeError:
            return None
    found = _BY_REASON.get(info.reason) if info.domain == DOMAIN else None
    if found is None:
        return None
    error = _rebuilt(found, status.message, info)
    if retry.HasField("retry_delay"):
        error.retry_after_s = _bounded(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    return error


def from_rpc_error(error: grpc.RpcError, address: str = "the peer") -> PNodeError:
    """The PNodeError behind an RpcError: the very class that the peer raised, else by status code."""
    if not isinstance(error, grpc.Call):
        return errors.PeerUnavailable(f"{address}: {type(error).__name__}")
    packed = _packed(error)
    return packed if packed is not None else _bare(error.code(), error.details() or "", address)


def _rebuilt(found: type[PNodeError], message: str, info: error_details_pb2.ErrorInfo) -> PNodeError:
    if issubclass(found, errors.SpecError):
        path = info.metadata.get("path", "")
        return found(path, message.removeprefix(f"{path}: "))
    return found(message)


def _packed(call: grpc.Call) -> PNodeError | None:
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):
        # The details contradict the status or cannot be read: a hostile or broken peer. The code alone counts.
        return None
    return from_status(status) if status is not None else None


def _bare(code: StatusCode, details: str, address: str) -> PNodeError:
    if code is StatusCode.UNIMPLEMENTED:
        return errors.PeerUnavailable(f"{address} is too old, or no PNode: it does not know this call")
    if code is StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(f"{address} did not answer in time")
    if code is StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return errors.TooLarge(f"{address}: {details}")
    return _BARE.get(code, PNodeError)(f"{address}: {code.name}: {details}")


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)


def _clipped(text: str, max_bytes: int) -> str:
    """Valid UTF-8 of at most so many bytes; a cut is marked."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    return raw[: max_bytes - 4].decode("utf-8", "ignore") + " ..."
