"""Thin adapters between gRPC and the interfaces of api.py: bytes in, PNodeError or bytes out.

Requests are parsed here, not by gRPC, which would answer a truncated message with INTERNAL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from pnode.errors import Busy, Draining, PNodeError, ReplyTooLarge, TooLarge
from pnode.observe.counters import Counters
from pnode.security.tokens import Claims
from pnode.transport import codec, compression, pieces
from pnode.transport.callers import caller_name, calling
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.guards import Guard
from pnode.transport.intake import Intake, Received
from pnode.transport.lanes import Lane
from pnode.transport.methods import DOOR, Method, methods_of, twins_of
from pnode.transport.passes import Metadata
from pnode.transport.refusals import Refusals
from pnode.transport.status import abort

log = logging.getLogger(__name__)

T = TypeVar("T")
Context = grpc.ServicerContext
# A class without type parameters where it runs, a generic one in its stubs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# What a caller that found a lane full should wait: about the time of one short command.
_RETRY_AFTER_S = 0.1


@dataclass(frozen=True)
class CallLimits:
    """What every call is held to."""

    max_message_bytes: int
    max_whole_bytes: int
    default_deadline_s: float
    max_deadline_s: float
    intake: Intake
    guard: Guard
    refusals: Refusals


@dataclass(frozen=True)
class Behaviour:
    """What gRPC calls for a method. It reads the thread pool to use from the attribute of this name."""

    answer: Callable[[Any, Context], Any]
    experimental_thread_pool: Lane

    def __call__(self, request: Any, context: Context) -> Any:
        if self.experimental_thread_pool.heard is not None:
            self.experimental_thread_pool.heard(context.peer())
        return self.answer(request, context)


@dataclass(frozen=True)
class Entry:
    """One method as it is served: its handler, and the lane that it runs in.

    `enter` says by the headers of a call why it is refused, or None; `note` is told of that, and of whose call it was.
    """

    handler: Handler
    lane: Lane
    enter: Callable[[Metadata], PNodeError | None] = lambda metadata: None
    note: Callable[[PNodeError, str], None] = lambda error, peer: None


class Router(grpc.GenericRpcHandler):
    """Finds the handler of a call, or refuses it at once: before its message is even received."""

    def __init__(self, refusals: Lane, counters: Counters) -> None:
        self._counters = counters
        self._entries: dict[str, Entry] = {}
        self._refusals = refusals
        self._spared: frozenset[str] = frozenset()
        self._closed = False

    def serve(self, service: ServiceDescriptor, api: object, lane: Lane, limits: CallLimits) -> None:
        """Serve every method of a service by the attribute of `api` that has its name."""
        for method in methods_of(service):
            behaviour = Behaviour(_unary(method, getattr(api, method.attribute), limits), lane)
            # As a stream of requests, of which only the first is asked for: on the wire it is the same, and nothing
            # is received before there is room.
            handler: Handler = grpc.stream_unary_rpc_method_handler(behaviour)
            self._guarded(method, handler, lane, limits)
        for twin in twins_of(service):
            behaviour = Behaviour(_in_pieces(twin, getattr(api, twin.attribute), limits), lane)
            self._guarded(twin, grpc.stream_stream_rpc_method_handler(behaviour), lane, limits)

    def _guarded(self, method: Method, handler: Handler, lane: Lane, limits: CallLimits) -> None:
        note = partial(limits.refusals.note, method.attribute)
        self._entries[method.path] = Entry(handler, lane, partial(_entered, method, limits), note)

    def add(self, path: str, handler: Handler, lane: Lane) -> None:
        """Serve one method, of any kind, to everybody."""
        self._entries[path] = Entry(handler, lane)

    def close(self, spared: frozenset[str]) -> None:
        """Refuse every further call, but those to the methods that are spared."""
        self._spared = spared
        self._closed = True

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        path = handler_call_details.method
        entry = self._entries.get(path)
        if entry is None:
            self._counters.add("refused.unknown_method")
            return None
        if self._closed and path not in self._spared:
            return self._refusal(Draining("this process is stopping"))
        if entry.lane.full:
            error = Busy(
                f"{entry.lane.num_calls} calls are in the {entry.lane.name} lane", retry_after_s=_RETRY_AFTER_S
            )
            self._counters.add(f"refused.lane.{entry.lane.name}")
            return self._refusal(error)
        refused = entry.enter(handler_call_details.invocation_metadata)
        return entry.handler if refused is None else self._refusal(refused, entry.note)

    def _refusal(
        self, error: PNodeError, note: Callable[[PNodeError, str], None] = lambda error, peer: None
    ) -> Handler:
        # A handler of request streams does not wait for the message: a refused caller costs neither it nor a thread.
        def refuse(_messages: object, context: Context) -> NoReturn:
            note(error, context.peer())
            abort(context, error)

        return grpc.stream_unary_rpc_method_handler(Behaviour(refuse, self._refusals))


def _entered(method: Method, limits: CallLimits, metadata: Metadata) -> PNodeError | None:
    try:
        limits.guard.enter(method, metadata)
    except PNodeError as error:
        return error
    return None


def _unary(
    method: Method, call: Callable[[Any, Deadline], Any], limits: CallLimits
) -> Callable[[Iterator[bytes], Context], bytes]:
    read = codec.reader_of(method.request)

    def answer(asked: _Asked) -> bytes:
        with limits.intake.received(asked.raws, asked.context, asked.deadline) as received:
            reply = _admitted(method, read(received.raw), received, asked, call, limits)
            try:
                raw = codec.written(reply, limits.max_message_bytes)
            except TooLarge as error:
                raise ReplyTooLarge(error.message) from None
            received.answered(len(raw))
            return raw

    return _guarded(method, answer, limits)


def _in_pieces(
    method: Method, call: Callable[[Any, Deadline], Any], limits: CallLimits
) -> Callable[[Iterator[bytes], Context], Iterator[bytes]]:
    """The same call, its messages cut into chunks."""

    def answer(asked: _Asked) -> Iterator[bytes]:
        with limits.intake.received(asked.raws, asked.context, asked.deadline, in_pieces=True) as received:
            request = codec.decode(method.request, received.raw)
            reply = codec.pieces(_admitted(method, request, received, asked, call, limits))
            num_bytes = sum(map(len, reply))
            if num_bytes > limits.max_whole_bytes:
                raise TooLarge(f"a reply of {num_bytes} bytes is over the maximum of {limits.max_whole_bytes} bytes")
            received.answered(num_bytes)
            return pieces.split(reply, limits.max_message_bytes)

    return _guarded(method, answer, limits)


class _Asked(NamedTuple):
    """A call that has come in, but for its message."""

    raws: Iterator[bytes]
    context: Context
    deadline: Deadline
    claims: Claims | None


def _admitted(
    method: Method,
    request: Any,
    received: Received,
    asked: _Asked,
    call: Callable[[Any, Deadline], Any],
    limits: CallLimits,
) -> Any:
    """What the implementation answers, where the guard lets the request in."""
    head = request.head if isinstance(request, Parcel) else request
    with calling(limits.guard.admit(method, asked.claims, head, asked.context)):
        if not isinstance(request, Parcel):
            return call(request, asked.deadline)
        if not compression.asks(head):
            return call(compression.plain(request, limits.max_whole_bytes, received.reserve), asked.deadline)
        head.ClearField("accepts")
        plain = compression.plain(request, limits.max_whole_bytes, received.reserve)
        return compression.compressed(call(plain, asked.deadline))


def _guarded(
    method: Method, answer: Callable[[_Asked], T], limits: CallLimits
) -> Callable[[Iterator[bytes], Context], T]:
    """The boundary of the process: the caller gets a status, whatever `answer` raises."""

    def guarded(raws: Iterator[bytes], context: Context) -> T:
        try:
            claims = limits.guard.identify(method, context)
            holder = None if claims is None else claims.holder
            name = caller_name(context, holder, stranger=method.service == DOOR.full_name)
            deadline = Deadline.of_call(
                context, name=name, default_s=limits.default_deadline_s, max_s=limits.max_deadline_s
            )
            deadline.check()
            return answer(_Asked(raws, context, deadline, claims))
        except PNodeError as error:
            limits.refusals.note(method.attribute, error, context.peer())
            return abort(context, error)
        except grpc.RpcError:
            # The call has ended before its message was here; gRPC, who raised this, knows.
            limits.refusals.counters.add(f"ended.{method.attribute}")
            raise
        except Exception:
            # The caller learns that something failed, the log learns what.
            log.exception("%s failed", method.path)
            return abort(context, PNodeError("the call failed here; the log of that process says why"))

    return guarded
