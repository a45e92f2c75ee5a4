"""The worker: one forked process, one VNode, one command at a time. It never returns to the zygote's code."""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NoReturn, Protocol

from pnode.errors import PNodeError
from pnode.sandbox import box, confinement, faults, frames, letters, limits, shared
from pnode.sandbox.verdict import EXIT_FAULT, EXIT_MEMORY, EXIT_PROTOCOL
from pnode.vnode.tensors import TensorBytes

log = logging.getLogger(__name__)

Fields = dict[str, object]
Answer = tuple[Fields, Sequence[shared.Content]]
# Allocators say it in words: torch's own, C++ libraries behind it, CUDA's.
_MEMORY_WORDS = ("can't allocate memory", "bad_alloc", "out of memory", "Cannot allocate memory")


class Commands(Protocol):
    """What a worker can be asked: the VNode itself. Tensors are views, valid until the next command."""

    def __call__(self, command: str, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        """Run one command. A survivable PNodeError goes to the caller; any other exception ends the worker."""
        ...


# What a child will do, once it was given what it needs.
Body = Callable[[], int]


def enter(
    prepare: Callable[[], Body], *, parent: int, keep: Sequence[int], stderr: int, bounds: limits.WorkerLimits
) -> NoReturn:
    """Confine this freshly forked process, run what `prepare` gives and leave with its exit code.

    prepare: opens what is needed, and reads nothing yet. stderr: where the process will speak, one of `keep`.
    """
    code = EXIT_FAULT
    try:
        os.setsid()
        confinement.reset_signals()
        confinement.close_all_but(keep)
        limits.apply(bounds)
        body = prepare()
        box.close(bounds, parent=parent, stderr=stderr)
        code = body()
    except BaseException as error:  # noqa: BLE001 - the boundary of a process: nothing may unwind into the zygote's loop
        if isinstance(error, Exception) and _is_memory(error):
            code = EXIT_MEMORY
        else:
            traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(code)


def attach(fds: Sequence[int], *, bounds: limits.WorkerLimits, commands: Commands) -> Body:
    """Open what a worker works with: its end of the socket, the inbox, the outbox. Returns what answers commands."""
    channel = socket.socket(fileno=fds[0])
    inbox = shared.attach(fds[1], writable=False)
    outbox = shared.attach(fds[2], writable=True)
    for fd in fds[1:3]:
        os.close(fd)
    return lambda: serve(channel, inbox, outbox, bounds=bounds, commands=commands)


def serve(
    channel: socket.socket,
    inbox: shared.Arena,
    outbox: shared.Arena,
    *,
    bounds: limits.WorkerLimits,
    commands: Commands,
) -> int:
    """Answer commands until the front closes its end. Returns the exit code."""
    read = letters.remembering(partial(_Command.of, inbox))
    while (received := letters.receive(channel)) is not None:
        limits.allow_cpu(bounds.cpu_s)
        number, body = received
        try:
            command = read(body)
        except frames.FrameError:
            return EXIT_PROTOCOL
        reply, code = command.run(commands, outbox)
        letters.send(channel, number, reply)
        if code is not None:
            # The front must have read why before our exit is reported to it; it hangs up then.
            channel.recv(1)
            return code
    return 0


class _Command:
    """One command as it came from the front."""

    def __init__(self, name: str, fields: Fields, tensors: Sequence[TensorBytes]) -> None:
        self._name = name
        self._fields = fields
        self._tensors = tensors

    @classmethod
    def of(cls, inbox: shared.Arena, body: bytes) -> _Command:
        frame = frames.decode(body)
        slots = shared.from_wire(frame.get("tensors"), inbox.size)
        return cls(frames.text(frame, "command"), frames.table(frame, "fields"), inbox.view(slots))

    def run(self, commands: Commands, outbox: shared.Arena) -> tuple[bytes, int | None]:
        """The reply's frame, and the exit code if it is the last one. Too large a frame is our fault."""
        try:
            fields, tensors = commands(self._name, self._fields, self._tensors)
            slots = outbox.take(tensors)
            return _answer(fields, slots) if fields else _tensors_alone(slots), None
        except PNodeError as error:
            if not faults.is_survivable(error):
                return self._fault(error)
            return frames.encode({"error": faults.to_wire(error)}), None
        except Exception as error:  # noqa: BLE001 - the boundary of a process: the front must hear of it
            return self._out_of_memory(error) if _is_memory(error) else self._fault(error)

    def _out_of_memory(self, error: Exception) -> tuple[bytes, int]:
        limits.open_last_words()
        # The frames of the traceback hold the tensors of the command that did not fit.
        message = f"went over its memory: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        error.__traceback__ = None
        return frames.encode({"error": faults.last_words("LIMIT_BREACH", message)}), EXIT_MEMORY

    def _fault(self, error: Exception) -> tuple[bytes, int]:
        # The text of an unexpected exception may quote anything, so only its kind goes to callers.
        message = f"the worker failed in {self._name!r} with {type(error).__name__}"
        trace = "".join(traceback.format_exception(error))
        return frames.encode({"error": faults.last_words("INTERNAL", message, trace)}), EXIT_FAULT


def _answer(fields: Fields, slots: tuple[shared.Slot, ...]) -> bytes:
    return frames.encode({"fields": fields, "tensors": shared.to_wire(slots)})


@lru_cache(letters.REMEMBERED)
def _tensors_alone(slots: tuple[shared.Slot, ...]) -> bytes:
    return _answer({}, slots)


def _is_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _MEMORY_WORDS)
