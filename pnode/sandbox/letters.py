"""Commands and answers between front and worker: a number, then a body, which is a control frame.

Calls of one shape have equal bodies, so whoever reads or writes them remembers the last few.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from pnode.sandbox import frames

T = TypeVar("T")

_NUMBER = struct.Struct("<Q")
# Whole conversations go over a few shapes; larger bodies are rare, and a hostile worker's are as large as it likes.
REMEMBERED = 4
_REMEMBERED_BYTES = 4096


def send(channel: socket.socket, number: int, body: bytes) -> None:
    """Send one. Raises OSError if the other side is gone."""
    frames.send_raw(channel, _NUMBER.pack(number) + body)


def receive(channel: socket.socket) -> tuple[int, bytes] | None:
    """The number and the body of the next one, or None once the other side has closed. Raises FrameError, OSError."""
    received = frames.receive_raw(channel, more=_NUMBER.size)
    if received is None:
        return None
    raw, _ = received
    if len(raw) < _NUMBER.size:
        raise frames.FrameError("a letter without a number")
    return _NUMBER.unpack_from(raw)[0], raw[_NUMBER.size :]


def remembering(read: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """`read`, asked once for small bodies that come again: it looks at nothing else; nobody changes what it gave."""
    known = lru_cache(REMEMBERED)(read)
    return lambda body: known(body) if len(body) <= _REMEMBERED_BYTES else read(body)
