"""Control frames: one bounded JSON object per datagram, with descriptors beside it only where they are expected."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

# Large enough for a few hundred tensor entries, small enough for the default buffer of a Unix socket.
MAX_FRAME_BYTES = 65_536

# We never write escapes for anything but control characters, quotes and backslashes, so an escaped surrogate is forged;
# a lone one would later break whatever encodes the text again.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_FD_BYTES = struct.calcsize("i")
# Plain numbers: an operation on Python's flags costs about as much as a system call, and every frame takes this way.
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_CUT_SHORT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)

Frame = dict[str, object]


class FrameError(ValueError):
    """The other side broke the protocol. What it sent is not quoted: it may be hostile."""


class Received(NamedTuple):
    """A frame and the descriptors that came with it, which now belong to the receiver."""

    frame: Frame
    fds: tuple[int, ...]


def encode(frame: Mapping[str, object]) -> bytes:
    """The datagram of a frame. Raises FrameError where it would be too large."""
    raw = _ENCODER.encode(frame).encode("utf-8")
    if len(raw) > MAX_FRAME_BYTES:
        raise FrameError(f"a control frame of {len(raw)} bytes is over the {MAX_FRAME_BYTES} allowed")
    return raw


def decode(raw: bytes) -> Frame:
    """Parse a datagram. Raises FrameError for anything but one JSON object in UTF-8 with unique keys.

    NaN and infinities are let through: the loss of a diverged model is one of them.
    """
    if len(raw) > MAX_FRAME_BYTES:
        raise FrameError("a control frame is too large")
    try:
        text = raw.decode("utf-8")
        if _SURROGATE.search(text):
            raise FrameError("a control frame holds surrogates")
        frame = _DECODER.decode(text)
    except FrameError:
        raise
    except (ValueError, RecursionError):
        raise FrameError("a control frame is not JSON") from None
    if not isinstance(frame, dict):
        raise FrameError("a control frame is not an object")
    return frame


def _unique(pairs: list[tuple[str, object]]) -> Frame:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise FrameError("a control frame has a key twice")
    return unique


# Made once: json's own functions make a new one at each call that has options.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends. Message boundaries are kept and neither end can be reopened by name."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, frame: Mapping[str, object], fds: Sequence[int] = (), *, flags: int = 0) -> None:
    """Send one frame. Raises FrameError if it is too large, OSError if the other side is gone."""
    send_raw(channel, encode(frame), fds, flags=flags)


def send_raw(channel: socket.socket, raw: bytes, fds: Sequence[int] = (), *, flags: int = 0) -> None:
    """Send a frame that was encoded already. Raises OSError if the other side is gone."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    channel.sendmsg([raw], rights, flags | _NO_SIGNAL)


def receive(channel: socket.socket, *, max_fds: int = 0, flags: int = 0) -> Received | None:
    """The next frame, or None once the other side has closed. Raises FrameError; OSError passes through.

    Descriptors beyond `max_fds` are closed, by the kernel or here, and the frame is refused.
    """
    received = receive_raw(channel, max_fds=max_fds, flags=flags)
    if received is None:
        return None
    raw, fds = received
    try:
        return Received(decode(raw), fds)
    except FrameError:
        close_all(fds)
        raise


def receive_raw(
    channel: socket.socket, *, max_fds: int = 0, flags: int = 0, more: int = 0
) -> tuple[bytes, tuple[int, ...]] | None:
    """As `receive`, but nothing is parsed, and `more` bytes may lie before the frame."""
    room = socket.CMSG_SPACE(max_fds * _FD_BYTES) if max_fds else 0
    raw, ancillary, how, _ = channel.recvmsg(MAX_FRAME_BYTES + more + 1, room, flags | _CLOSE_ON_EXEC)
    fds = _descriptors(ancillary) if ancillary else ()
    if how & _CUT_SHORT or len(fds) > max_fds:
        close_all(fds)
        raise FrameError("a control frame is too large or brings descriptors")
    return (raw, fds) if raw or fds else None


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    return tuple(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that are not wanted."""
    for fd in fds:
        os.close(fd)


# Fields of a frame, each checked for its type.


def text(frame: Mapping[str, object], key: str) -> str:
    """A string. Raises FrameError."""
    found = frame.get(key)
    return found if isinstance(found, str) else _mistyped(key)


def integer(frame: Mapping[str, object], key: str) -> int:
    """An integer, not a bool. Raises FrameError."""
    found = frame.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else _mistyped(key)


def number(frame: Mapping[str, object], key: str) -> float:
    """An integer or a float. Raises FrameError."""
    found = frame.get(key)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else _mistyped(key)


def table(frame: Mapping[str, object], key: str) -> Frame:
    """A nested object. Raises FrameError."""
    found = frame.get(key)
    return found if isinstance(found, dict) else _mistyped(key)


def _mistyped(key: str) -> NoReturn:
    raise FrameError(f"a control frame's {key!r} is missing or has another type")
