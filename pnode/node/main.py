"""Runs one PNode until SIGTERM: serve, then drain, checkpoint, unregister and exit 0. SIGHUP: new limits."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pnode.node.node import Node
from pnode.node.reload import reloading_on_hangup
from pnode.node.settings import NodeSettings
from pnode.sandbox import limits
from pnode.storage.blob import BlobStore

log = logging.getLogger(__name__)


def run_node(settings: NodeSettings, store: BlobStore, reread: Callable[[], NodeSettings]) -> int:
    """Run one PNode in this process; returns its exit code.

    One JSON line on stdout tells whoever started it where it serves. SIGTERM and SIGINT ask for a drain; a second
    one ends it at once. SIGHUP has the settings read again, by `reread`. Raises ConfigError for what cannot be started.
    """
    # A worker has some descriptors here, and a call has one: more than the thousand that shells give.
    limits.raise_num_files()
    node = Node(settings, store)
    try:
        with _draining_on_signals(node), reloading_on_hangup(node, settings, reread):
            node.start()
            announce("node", node.address, uuid=node.uuid)
            node.join()
            node.drain_asked.wait()
            node.leave()
    finally:
        node.close()
    return 0


def announce(role: str, address: str, **more: str) -> None:
    """One JSON line on stdout: a process that was given port 0 tells its starter where it serves."""
    sys.stdout.write(json.dumps({"event": "serving", "role": role, "address": address, **more}) + "\n")
    sys.stdout.flush()


@contextmanager
def _draining_on_signals(node: Node) -> Iterator[None]:
    def asked(number: int, frame: FrameType | None) -> None:
        del frame
        if node.drain_asked.is_set():
            raise KeyboardInterrupt
        # A thread, for a handler interrupts whatever lock its thread holds just now.
        threading.Thread(target=node.drain, args=(signal.Signals(number).name,), name="drain").start()

    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
