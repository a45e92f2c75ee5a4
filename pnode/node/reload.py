"""SIGHUP has a running node read its configuration again: its owner takes memory back, or gives more."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from types import FrameType
from typing import Protocol

from pnode.errors import ConfigError
from pnode.node.settings import NodeSettings

log = logging.getLogger(__name__)

# What may change while VNodes are at work, and the keys that it comes from.
_CHANGEABLE = {
    "vnode_memory_bytes": "limits.memory",
    "max_vnodes": "limits.max_vnodes",
    "disk_bytes": "limits.disk",
    "pressure": "pressure",
}


class Obedient(Protocol):
    """The node, as its owner sees it."""

    def obey(self, settings: NodeSettings) -> None: ...
    def drain(self, reason: str) -> None: ...


class Reload:
    """The settings in force, and the way to others."""

    def __init__(self, node: Obedient, settings: NodeSettings, reread: Callable[[], NodeSettings]) -> None:
        self._node = node
        self._settings = settings
        self._reread = reread
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """Read again and obey. What is wrong changes nothing; what needs a restart is named and waits for one."""
        with self._lock:
            try:
                found = self._reread()
            except ConfigError as error:
                log.error("the configuration was read again and is wrong, so the old one stays: %s", error.message)
                return
            self._take(found)

    def _take(self, found: NodeSettings) -> None:
        different = [
            field.name for field in fields(found) if getattr(found, field.name) != getattr(self._settings, field.name)
        ]
        taken = {name: getattr(found, name) for name in different if name in _CHANGEABLE}
        self._settings = replace(self._settings, **taken)
        self._node.obey(self._settings)
        said = ", ".join(f"{_CHANGEABLE[name]} is {value}" for name, value in taken.items())
        log.info("the configuration was read again: %s", said or "nothing to do")
        waiting = [name for name in different if name not in _CHANGEABLE]
        if waiting:
            log.warning("what else has changed needs a restart: %s", ", ".join(waiting))


@contextmanager
def reloading_on_hangup(node: Obedient, settings: NodeSettings, reread: Callable[[], NodeSettings]) -> Iterator[None]:
    """SIGHUP reloads. A terminal that closes sends it, too: a node that was started on one leaves with it."""
    reload = Reload(node, settings, reread)
    terminals = [fd for fd in range(3) if os.isatty(fd)]

    def hung_up(number: int, frame: FrameType | None) -> None:
        del number, frame
        leave = any(map(_is_gone, terminals))
        task = (lambda: node.drain("its terminal was closed")) if leave else reload
        # A thread, for a handler interrupts whatever lock its thread holds just now.
        threading.Thread(target=task, name="reload").start()

    before = signal.signal(signal.SIGHUP, hung_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _is_gone(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
