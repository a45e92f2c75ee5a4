"""A worker as the front sees it: one command at a time, each under the wall clock of its spec."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, NoReturn, TypeVar

from pnode.errors import BadRequest, DeadlineExceeded, WorkerLost
from pnode.sandbox import faults, frames, letters, shared, usage
from pnode.sandbox.child import Child
from pnode.sandbox.clocks import Allowance
from pnode.sandbox.limits import WorkerLimits
from pnode.sandbox.turns import Turns
from pnode.sandbox.verdict import Doom, Verdict
from pnode.sandbox.words import LastWords
from pnode.v1 import spec_pb2
from pnode.vnode import sizes
from pnode.vnode.tensors import TensorBytes

log = logging.getLogger(__name__)

T = TypeVar("T")

# A worker that closed its socket, or said its last words, is gone by itself within milliseconds.
_LEAVE_S = 1.0
_SCALARS = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class WorkerReply:
    """What a worker answered to one command: scalars by name, and tensors."""

    fields: dict[str, Any]
    tensors: list[TensorBytes]


class _Judged(NamedTuple):
    """The body of an answer, found well formed: an error, or scalars and where the tensors lie."""

    error: frames.Frame | None
    fields: frames.Frame
    slots: tuple[shared.Slot, ...]


class WorkerProcess:
    """One VNode in its worker. Made by `ZygoteProcess.fork`; thread-safe."""

    def __init__(self, spec: spec_pb2.VNodeSpec, limits: WorkerLimits) -> None:
        self.vnode = spec.id
        self.child = Child(limits, self._ended)
        self.image_bytes = 0
        self._wall_s = float(spec.limits.wall_s)
        self._on_exit: Callable[[WorkerProcess, Verdict], None] | None = None
        self._reporting = threading.Lock()
        self._turns = Turns()
        self._sequence = 0
        self._closed = False
        self._reported = False
        self._freed = False
        self._channel, self._peer = frames.pair()
        self._inbox, self._outbox, arena_fds = _arenas(spec)
        self._words = LastWords()
        self._worker_fds = (*arena_fds, self._words.theirs)
        self._channel.setblocking(False)
        self._readable = select.poll()
        self._readable.register(self._channel, select.POLLIN)
        self._judged = letters.remembering(partial(_judge, self._outbox.size))
        self._plain = lru_cache(letters.REMEMBERED)(_plain)

    # What it is

    @property
    def pid(self) -> int | None:
        """Its process id, once it was forked."""
        return self.child.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet, as far as we know."""
        return self.child.pid is not None and not self.child.ended.is_set()

    @property
    def exit_reason(self) -> Verdict | None:
        """Why it ended, or None while it lives."""
        return self.child.verdict

    @property
    def used_bytes(self) -> int:
        """Memory that it has taken by now, beyond the zygote's `image_bytes`."""
        return usage.own_bytes(self.child.pid, self.image_bytes) if self.alive and self.child.pid else 0

    # Commands

    def call(
        self,
        command: str,
        fields: Mapping[str, Any] | None = None,
        tensors: Sequence[TensorBytes] = (),
        *,
        deadline_s: float | None,
    ) -> WorkerReply:
        """Run one command; the payloads of its reply are `bytes` of our own. Raises what `exchange` raises."""
        return self.exchange(command, fields or {}, tensors, _copied, deadline_s=deadline_s)

    def exchange(
        self,
        command: str,
        fields: Mapping[str, Any],
        tensors: Sequence[TensorBytes],
        read: Callable[[WorkerReply], T],
        *,
        deadline_s: float | None,
    ) -> T:
        """Run one command. Waits for its turn no longer than `deadline_s`; once begun it runs to its end or its limits.

        `read` makes what is kept of the reply, whose payloads are views of shared memory, good until it returns. A
        hostile worker may change them at any time, so nothing may depend on what it finds there.
        The caller's deadline is not the worker's: an impatient client must not cost a VNode its worker.
        Raises DeadlineExceeded where the turn did not come; BadRequest, TooLarge, SpecError, StepMismatch or
        BlobCorrupt of the command itself; WallClockBreach, LimitBreach or WorkerLost where the worker ended by it, and
        WorkerLost ever after.
        """
        try:
            self._turns.take(deadline_s)
            try:
                if self.child.ended.is_set():
                    raise WorkerLost(f"VNode {self.vnode!r} has no worker: {self._epitaph()}")
                slots = self._inbox.pack(tensors)
                return read(self._answered(command, self._body(command, fields, slots)))
            finally:
                self._turns.give()
        finally:
            self._free_after_end()

    def _body(self, command: str, fields: Mapping[str, Any], slots: tuple[shared.Slot, ...]) -> bytes:
        """Raises BadRequest where it would be too large."""
        try:
            return _written(command, fields, slots) if fields else self._plain(command, slots)
        except frames.FrameError as error:
            raise BadRequest(str(error)) from None

    def _answered(self, command: str, body: bytes) -> WorkerReply:
        """The answer to a command. A broken protocol or a broken socket is the end of the worker."""
        self._sequence += 1
        try:
            allowance = self._allowance()
            letters.send(self._channel, self._sequence, body)
            judged = self._reply(command, allowance)
            if judged.error is not None:
                self._raise(judged.error, command)
            return WorkerReply(dict(judged.fields), self._outbox.view(judged.slots))
        except frames.FrameError as error:
            raise self.child.wait_end(Doom("protocol", f"broke the protocol in {command!r}: {error}")) from None
        except OSError:
            # The socket is gone, so the worker is about to be, by itself.
            gone = Doom("protocol", f"closed its socket in {command!r}")
            raise self.child.wait_end(gone, grace_s=_LEAVE_S) from None

    def _allowance(self) -> Allowance:
        limits = self.child.limits
        return Allowance(self.pid or 0, limits.cpu_s, self._wall_s, limits.num_threads)

    def _reply(self, command: str, allowance: Allowance) -> _Judged:
        """The next letter, within the wall clock and the processor time of a command."""
        over = allowance.await_readable(self._readable)
        if over == "wall":
            message = f"went over its {self._wall_s:g} s of wall clock in {command!r}"
            raise self.child.wait_end(Doom("wall_clock", message, {"limit_s": self._wall_s}))
        if over == "cpu":
            message = f"went over its {allowance.cpu_s:g} s of processor time in {command!r}"
            raise self.child.wait_end(Doom("cpu", message, {"limit_s": allowance.cpu_s}))
        received = letters.receive(self._channel)
        if received is None:
            raise ConnectionResetError
        number, body = received
        if number != self._sequence:
            # Also what nobody asked for, and what was said twice.
            raise frames.FrameError("a reply to another command")
        return self._judged(body)

    def _raise(self, body: frames.Frame, command: str) -> NoReturn:
        error = faults.from_wire(body)
        if not isinstance(error, Doom):
            raise error
        log.error("VNode %s: %s in %r\n%s", self.vnode, error.message, command, faults.trace_of(body))
        self.child.expect(error)
        self._channel.shutdown(socket.SHUT_RDWR)
        raise self.child.wait_end(error, grace_s=_LEAVE_S)

    # Its end

    def kill(self, reason: str) -> None:
        """End it now. Its VNode is lost until it is restored in another worker."""
        self.child.doom(Doom("killed", reason))

    def close(self) -> None:
        """End it and give back its memory and descriptors. `on_exit` is not called for it any more. Idempotent."""
        self._closed = True
        self.handed_over()
        if self.child.pid is not None:
            self.child.wait_end(Doom("killed", "the VNode was released"))
        with suppress(DeadlineExceeded):
            self._turns.take(_LEAVE_S)
            self._free()
            self._turns.give()

    def _ended(self, verdict: Verdict) -> None:
        """From the supervisor's thread, once."""
        try:
            self._channel.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("VNode %s: the socket was closed before the worker ended", self.vnode)
        words = self._words.read()
        self._free_after_end()
        log.info("VNode %s: worker %s ended: %s: %s", self.vnode, self.pid, verdict.kind, verdict.sentence)
        if words:
            log.warning("VNode %s: the last words of worker %s:\n%s", self.vnode, self.pid, words)
        with self._reporting:
            self._reported, on_exit = True, self._on_exit
        if on_exit is not None and not self._closed:
            on_exit(self, verdict)

    def report_end_to(self, on_exit: Callable[[WorkerProcess, Verdict], None] | None) -> None:
        """From now on. Raises the error of its end where it has ended already: then nobody else hears of it."""
        with self._reporting:
            self._on_exit = on_exit
            ended = self._reported
        if ended and self.exit_reason is not None:
            raise self.exit_reason.error()

    def _epitaph(self) -> str:
        return "it was never forked" if self.exit_reason is None else self.exit_reason.sentence

    # What the worker is given

    @property
    def fds(self) -> tuple[int, ...]:
        """Its end of the socket, the inbox, the outbox, its stderr: to be sent to the zygote."""
        return (self._peer.fileno(), *self._worker_fds)

    def handed_over(self) -> None:
        """The zygote has its copies of `fds`, or never will: close ours."""
        self._peer.close()
        fds, self._worker_fds = self._worker_fds, ()
        frames.close_all(fds)

    def _free_after_end(self) -> None:
        """Whoever leaves last: the call that was running, or the supervisor."""
        if self.child.ended.is_set() and self._turns.try_take():
            self._free()
            self._turns.give()

    def _free(self) -> None:
        """The turn must be held, or nobody be left to take it."""
        if not self._freed:
            self._freed = True
            self._channel.close()
            self._inbox.close()
            self._outbox.close()
            self._words.close()


def _written(command: str, fields: Mapping[str, Any], slots: tuple[shared.Slot, ...]) -> bytes:
    """The body of a command. Raises FrameError where it would be too large."""
    return frames.encode({"command": command, "fields": dict(fields), "tensors": shared.to_wire(slots)})


def _plain(command: str, slots: tuple[shared.Slot, ...]) -> bytes:
    return _written(command, {}, slots)


def _judge(outbox_bytes: int, body: bytes) -> _Judged:
    """The body of an answer. Raises FrameError where it is none, or names tensors outside the outbox."""
    reply = frames.decode(body)
    if "error" in reply:
        return _Judged(frames.table(reply, "error"), {}, ())
    fields = frames.table(reply, "fields")
    if not all(isinstance(value, _SCALARS) for value in fields.values()):
        raise frames.FrameError("a field of a reply is no scalar")
    return _Judged(None, fields, shared.from_wire(reply.get("tensors"), outbox_bytes))


def _copied(reply: WorkerReply) -> WorkerReply:
    return WorkerReply(reply.fields, [each._replace(payload=bytes(each.payload)) for each in reply.tensors])


def _arenas(spec: spec_pb2.VNodeSpec) -> tuple[shared.Arena, shared.Arena, tuple[int, ...]]:
    """Inbox, outbox and their descriptors. The spec itself is the first thing to go through the inbox."""
    inbox, inbox_fd = shared.create("inbox", max(sizes.inbox_bytes(spec), spec.ByteSize()), worker_writes=False)
    try:
        outbox, outbox_fd = shared.create("outbox", sizes.outbox_bytes(spec), worker_writes=True)
    except BaseException:
        inbox.close()
        os.close(inbox_fd)
        raise
    return inbox, outbox, (inbox_fd, outbox_fd)
