"""The other process: a PNode, and beside it a bare gRPC server that echoes bytes; both meet the same machine."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import grpc

from pnode.node.node import Node
from pnode.node.settings import NodeSettings
from pnode.sandbox import limits
from pnode.storage.local import LocalStore
from pnode.transport import arenas
from pnode.transport.guards import OpenGuard

START_S = 500.0
ECHO = "/bench.Echo/Echo"
# Nothing bounds the echo's messages.
UNBOUNDED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


class Peer(NamedTuple):
    """Where the two servers listen, as host:port."""

    node: str
    echo: str


@contextmanager
def peer(max_message_bytes: int = 64 << 20) -> Iterator[Peer]:
    """A process with both servers, until the end."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(theirs, max_message_bytes), name="peer")
    process.start()
    theirs.close()
    try:
        yield Peer(*ours.recv())
    finally:
        ours.close()
        process.join(30)
        process.kill()


def _serve(until: Connection, max_message_bytes: int) -> None:
    """Serve until the other end of the pipe is closed."""
    limits.raise_num_files()
    arenas.keep()
    with tempfile.TemporaryDirectory() as name:
        settings = NodeSettings(
            # Nobody listens there: the node serves all the same.
            orchestrator_address="127.0.0.1:9",
            data_dir=Path(name),
            port=0,
            start_s=START_S,
            vnode_memory_bytes=4 << 30,
            max_message_bytes=max_message_bytes,
        )
        node = Node(settings, LocalStore(Path(name) / "store"), guard=OpenGuard())
        echo = grpc.server(ThreadPoolExecutor(8), handlers=[_Echo()], options=UNBOUNDED)
        port = echo.add_insecure_port("127.0.0.1:0")
        try:
            echo.start()
            node.start()
            until.send((node.address, f"127.0.0.1:{port}"))
            until.poll(None)
        finally:
            echo.stop(None)
            node.close()


class _Echo(grpc.GenericRpcHandler):
    """Answers with the very bytes that came."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if handler_call_details.method != ECHO:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda raw, context: raw)
