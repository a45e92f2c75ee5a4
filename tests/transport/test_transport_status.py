"""Every class of the error tree crosses the wire as itself; statuses of others find their nearest class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no stubs
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transport_fakes import FakeVNodes

from pnode import errors
from pnode.errors import PNodeError, SpecError
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteVNode
from pnode.transport.status import CODES, DOMAIN, code_of, from_rpc_error, from_status, to_status
from pnode.v1 import vnode_pb2


def _tree(root: type[PNodeError]) -> Iterator[type[PNodeError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


TREE = [found for found in _tree(PNodeError) if found.__module__ == "pnode.errors"]
# Words of any length and any alphabet, lone surrogates among them: bytes from outside end up in sentences.
WORDS = st.one_of(st.text(max_size=80), st.text(st.characters(), max_size=80), st.text(min_size=2000, max_size=4000))


def made(kind: type[PNodeError], message: str, retry_after_s: float | None) -> PNodeError:
    if issubclass(kind, SpecError):
        error: PNodeError = kind("operators[3].linear", message)
        error.retry_after_s = retry_after_s
        return error
    return kind(message, retry_after_s=retry_after_s)


def test_the_tree_is_whole_and_reasons_are_unique() -> None:
    public = {found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, PNodeError)}
    assert set(TREE) == public
    assert len({found.reason for found in TREE}) == len(TREE)
    assert set(CODES) <= set(TREE)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
@settings(deadline=None)
@given(message=st.text(st.characters(codec="utf-8"), max_size=200), retry_after_s=st.none() | st.floats(0, 3600))
def test_each_class_comes_back_as_itself(kind: type[PNodeError], message: str, retry_after_s: float | None) -> None:
    error = made(kind, message, retry_after_s)
    back = from_status(status_pb2.Status.FromString(to_status(error).SerializeToString()))
    assert type(back) is kind
    assert back.message == error.message
    assert getattr(back, "path", None) == getattr(error, "path", None)
    assert getattr(back, "why", None) == getattr(error, "why", None)
    if retry_after_s is None:
        assert back.retry_after_s is None
    else:
        assert back.retry_after_s == pytest.approx(retry_after_s, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.PNodeError, StatusCode.INTERNAL),
        (errors.SpecError, StatusCode.INVALID_ARGUMENT),
        (errors.TooLarge, StatusCode.INVALID_ARGUMENT),
        (errors.UnknownVNode, StatusCode.NOT_FOUND),
        (errors.StepMismatch, StatusCode.FAILED_PRECONDITION),
        (errors.LeaseLost, StatusCode.FAILED_PRECONDITION),
        (errors.Conflict, StatusCode.ALREADY_EXISTS),
        (errors.Busy, StatusCode.RESOURCE_EXHAUSTED),
        (errors.WallClockBreach, StatusCode.DEADLINE_EXCEEDED),
        (errors.WorkerLost, StatusCode.UNAVAILABLE),
        (errors.Draining, StatusCode.UNAVAILABLE),
        (errors.BlobCorrupt, StatusCode.DATA_LOSS),
        (errors.PreconditionFailed, StatusCode.ABORTED),
    ],
)
def test_codes_are_those_of_the_tree(kind: type[PNodeError], code: StatusCode) -> None:
    assert code_of(made(kind, "words", None)) is code


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(TREE), message=WORDS, path=WORDS, retry_after_s=st.none() | st.floats(0, 1e300))
def test_any_words_fit_into_real_trailers(
    echo: tuple[FakeVNodes, RemoteVNode], kind: type[PNodeError], message: str, path: str, retry_after_s: float | None
) -> None:
    fake, remote = echo
    error = SpecError(path, message) if kind is SpecError else made(kind, message, retry_after_s)
    fake.error = error
    with pytest.raises(PNodeError) as caught:
        remote.describe(vnode_pb2.DescribeRequest(), Deadline.after(30.0))
    assert type(caught.value) is kind
    assert len(caught.value.message.encode()) <= 1024
    if len(error.message.encode("utf-8", "replace")) <= 1024 and len(path.encode("utf-8", "replace")) <= 256:
        assert caught.value.message.encode() == error.message.encode("utf-8", "replace")


@pytest.fixture
def echo(serve: Callable[..., Any], pool: ChannelPool) -> tuple[FakeVNodes, RemoteVNode]:
    fake = FakeVNodes()
    return fake, RemoteVNode(pool, f"127.0.0.1:{serve(vnodes=fake).port}")


class Status(grpc.RpcError, grpc.Call):
    """What a call ended with."""

    def __init__(self, code: StatusCode, details: str, packed: bytes | None = None) -> None:
        self._code, self._details, self._packed = code, details, packed

    def code(self) -> StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return () if self._packed is None else (("grpc-status-details-bin", self._packed),)

    def initial_metadata(self) -> Any:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.UNAVAILABLE, errors.PeerUnavailable),
        (StatusCode.CANCELLED, errors.PeerUnavailable),
        (StatusCode.INTERNAL, errors.PeerUnavailable),
        (StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (StatusCode.RESOURCE_EXHAUSTED, errors.Busy),
        (StatusCode.INVALID_ARGUMENT, errors.BadRequest),
        (StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (StatusCode.FAILED_PRECONDITION, errors.PNodeError),
    ],
)
def test_a_bare_status_goes_by_its_code(code: StatusCode, kind: type[PNodeError]) -> None:
    found = from_rpc_error(Status(code, "words"), "127.0.0.1:9")
    assert type(found) is kind
    assert found.message.startswith("127.0.0.1:9")


def test_a_peer_without_the_method_is_too_old() -> None:
    found = from_rpc_error(Status(StatusCode.UNIMPLEMENTED, "Method not found!"), "127.0.0.1:9")
    assert type(found) is errors.PeerUnavailable
    assert "too old" in found.message


def test_an_error_that_is_no_call_is_a_lost_peer() -> None:
    assert type(from_rpc_error(grpc.RpcError())) is errors.PeerUnavailable


def _packed(message: str = "words", reason: str = "BUSY", domain: str = DOMAIN, delay_s: int | None = None) -> bytes:
    status = status_pb2.Status(code=StatusCode.RESOURCE_EXHAUSTED.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    if delay_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = delay_s
        status.details.add().Pack(retry)
    return bytes(status.SerializeToString())


@pytest.mark.parametrize(
    "packed",
    [
        b"\xff garbage",
        _packed(message="other words"),
        _packed(reason="OF_A_NEWER_PEER"),
        _packed(domain="example.org"),
        status_pb2.Status(code=3, message="words").SerializeToString(),
        status_pb2.Status(code=8, message="words").SerializeToString(),
        status_pb2.Status(
            code=8,
            message="words",
            details=[{"type_url": "type.googleapis.com/google.rpc.ErrorInfo", "value": b"\xff"}],
        ).SerializeToString(),
    ],
    ids=["garbage", "contradicts", "unknown reason", "stranger", "other code", "no details", "broken details"],
)
def test_details_that_cannot_be_trusted_leave_the_code(packed: bytes) -> None:
    assert type(from_rpc_error(Status(StatusCode.RESOURCE_EXHAUSTED, "words", packed))) is errors.Busy


@pytest.mark.parametrize(("delay_s", "heeded_s"), [(-5, 0.0), (10**11, 3600.0), (2, 2.0)])
def test_a_peer_cannot_make_us_wait_for_ever(delay_s: int, heeded_s: float) -> None:
    status = status_pb2.Status.FromString(_packed(delay_s=delay_s))
    found = from_status(status)
    assert found is not None
    assert found.retry_after_s == heeded_s


def test_senseless_waits_are_not_sent() -> None:
    for senseless in (float("nan"), float("inf")):
        assert len(to_status(errors.Busy("full", retry_after_s=senseless)).details) == 1
