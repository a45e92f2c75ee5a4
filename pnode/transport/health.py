"""The standard health service, and reflection.

grpc_health's own servicer sends to watchers while it holds its lock, so one watcher that does not read would silence
health for all; here each watcher has a thread of a small pool of its own, and Check never waits for anyone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from pnode.errors import BadRequest
from pnode.transport.codec import parsed
from pnode.transport.deadline import Deadline
from pnode.transport.lanes import Lane
from pnode.transport.servicers import Behaviour, Context, Handler, Router
from pnode.transport.status import abort
from pnode.transport.watch import Watch

SERVICE = health.SERVICE_NAME
PATHS = frozenset({f"/{SERVICE}/Check", f"/{SERVICE}/Watch"})
# A stranger who opens a call and sends nothing holds a thread so long, and no longer.
_RECEIVE_S = 5.0
# Whoever watches or asks for longer comes again: a thread is lent, not given.
_WATCH_S = 600.0
_REFLECTION_S = 60.0

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Who serves, by name. The empty name is the whole process."""

    def __init__(self, services: Sequence[str], watch: Watch) -> None:
        self._watched = watch
        self._changed = threading.Condition()
        self._serving = dict.fromkeys(["", *services], False)
        self._closing = False
        self._closed = False

    def set(self, name: str, *, serving: bool) -> None:
        """Change one status; ignored once the process is stopping, when nothing serves."""
        with self._changed:
            self._serving[name] = serving and not self._closing
            self._changed.notify_all()

    def stop_serving(self) -> None:
        """Nothing serves from here on; whoever asks is told so."""
        with self._changed:
            self._closing = True
            self._serving = dict.fromkeys(self._serving, False)
            self._changed.notify_all()

    def close(self) -> None:
        """End every watch."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def add_to(self, router: Router, checks: Lane, streams: Lane) -> None:
        """Serve Check in one lane and Watch in another."""
        router.add(f"/{SERVICE}/Check", grpc.stream_unary_rpc_method_handler(Behaviour(self._check, checks)), checks)
        router.add(f"/{SERVICE}/Watch", grpc.stream_stream_rpc_method_handler(Behaviour(self._watch, streams)), streams)

    def _check(self, raws: Iterator[bytes], context: Context) -> bytes:
        status = self._status(self._name_in(raws, context))
        if status == _UNKNOWN:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=status).SerializeToString()

    def _watch(self, raws: Iterator[bytes], context: Context) -> Iterator[bytes]:
        name, told, deadline = self._name_in(raws, context), None, Deadline.after(_WATCH_S)
        # False: the call has ended already, so nobody would wake this thread.
        if not context.add_callback(self._wake):
            return
        while context.is_active():
            status, closed = self._news(name, told, context, deadline.left_s())
            if deadline.passed:
                return
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status).SerializeToString()
            if closed:
                return
            told = status

    def _news(self, name: str, told: int | None, context: Context, at_most_s: float) -> tuple[int, bool]:
        """Wait until a status is not what was told, the call ends or the server does; the status, and that."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._status(name) != told or not context.is_active(), at_most_s
            )
            return self._status(name), self._closed

    def _status(self, name: str) -> int:
        with self._changed:
            serving = self._serving.get(name)
        return _UNKNOWN if serving is None else _SERVING if serving else _NOT_SERVING

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _name_in(self, raws: Iterator[bytes], context: Context) -> str:
        with self._watched.over(_RECEIVE_S, context.cancel):
            raw = next(raws, None)
        try:
            if raw is None:
                raise BadRequest("the call brought no message")
            return parsed(health_pb2.HealthCheckRequest, raw).service
        except BadRequest as error:
            return abort(context, error)


def add_reflection(router: Router, services: Sequence[str], lane: Lane, watch: Watch) -> None:
    """Serve reflection: any client may ask which services and messages there are, for some minutes at a time."""
    servicer = reflection.ReflectionServicer([*services, SERVICE, reflection.SERVICE_NAME])

    def requests(raws: Iterator[bytes], context: Context) -> Iterator[reflection_pb2.ServerReflectionRequest]:
        for raw in raws:
            try:
                yield parsed(reflection_pb2.ServerReflectionRequest, raw)
            except BadRequest as error:
                abort(context, error)

    def answer(raws: Iterator[bytes], context: Context) -> Iterator[bytes]:
        with watch.over(_REFLECTION_S, context.cancel):
            for reply in servicer.ServerReflectionInfo(requests(raws, context), context):
                yield reply.SerializeToString()

    handler: Handler = grpc.stream_stream_rpc_method_handler(Behaviour(answer, lane))
    router.add(f"/{reflection.SERVICE_NAME}/ServerReflectionInfo", handler, lane)
