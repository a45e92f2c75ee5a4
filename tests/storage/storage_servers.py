"""Servers on the loopback that misbehave: one by a script, one by standing between a client and the real server."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_RECV_BYTES = 1 << 16


class Server(ABC):
    """Listens on a port of the system's choice; each connection has a thread. All are gone on exit."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stopping.set()
        with self._lock:
            for each in self._open:
                _shut(each)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        for each in self._open:
            each.close()

    @abstractmethod
    def serve(self, client: socket.socket) -> None:
        """Have one connection. OSError ends it."""

    def keep(self, connection: socket.socket) -> socket.socket:
        """Close a connection with the server."""
        with self._lock:
            self._open.append(connection)
            if self.stopping.is_set():
                _shut(connection)
        return connection

    def _spawn(self, target: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                client = self.keep(self._listener.accept()[0])
            except OSError:
                return
            self._spawn(self._have, client)

    def _have(self, client: socket.socket) -> None:
        try:
            self.serve(client)
        except OSError:
            pass
        finally:
            _shut(client)


class Scripted(Server):
    """Answers every request by `answer(client, stopping)`, whatever was asked."""

    def __init__(self, answer: Callable[[socket.socket, threading.Event], None]) -> None:
        super().__init__()
        self._answer = answer

    def serve(self, client: socket.socket) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            received = client.recv(_RECV_BYTES)
            if not received:
                return
            asked += received
        self._answer(client, self.stopping)


class Proxy(Server):
    """Passes everything on, but for the PUTs that `faults` has a fault for: one fault is used up by each.

    "lose": the server has the request, the client never hears of it. "conflict": the client hears 409, the server
    nothing.
    """

    def __init__(self, upstream_url: str) -> None:
        super().__init__()
        address = urlsplit(upstream_url)
        self._upstream = (str(address.hostname), int(address.port or 0))
        self.faults: deque[str] = deque()

    def serve(self, client: socket.socket) -> None:
        with socket.create_connection(self._upstream, timeout=10) as upstream:
            self.keep(upstream)
            upstream.settimeout(None)
            losing = threading.Event()
            answers = self._spawn(_answers, upstream, client, losing)
            try:
                while request := client.recv(_RECV_BYTES):
                    fault = self.faults.popleft() if request.startswith(b"PUT ") and self.faults else None
                    if fault == "conflict":
                        client.sendall(_CONFLICT)
                        return
                    if fault == "lose":
                        losing.set()
                    upstream.sendall(request)
            finally:
                _shut(upstream)
                answers.join(10)


def _answers(upstream: socket.socket, client: socket.socket, losing: threading.Event) -> None:
    try:
        while answer := upstream.recv(_RECV_BYTES):
            if losing.is_set() and not answer.startswith(b"HTTP/1.1 100"):
                return
            client.sendall(answer)
    except OSError:
        return
    finally:
        _shut(client)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It is shut already.
        return


def reply(status: str, body: bytes = b"", *headers: str) -> bytes:
    """A whole HTTP reply, after which the connection ends."""
    lines = [f"HTTP/1.1 {status}", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


_CONFLICT = reply(
    "409 Conflict",
    b"<Error><Code>ConditionalRequestConflict</Code><Message>come again</Message></Error>",
    "Content-Type: application/xml",
)
