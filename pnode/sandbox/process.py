"""A worker as the front sees it: one command at a time, each under the wall clock of its spec."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from pnode.errors import BadRequest, DeadlineExceeded, WorkerLost
from pnode.sandbox import faults, frames, shared, usage
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

# A worker that closed its socket, or said its last words, is gone by itself within milliseconds.
_LEAVE_S = 1.0
_SCALARS = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class WorkerReply:
    """What a worker answered to one command: scalars by name, and tensors whose payloads are `bytes` of our own."""

    fields: dict[str, Any]
    tensors: list[TensorBytes]


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
        """Run one command. Waits for its turn no longer than `deadline_s`; once begun it runs to its end or its limits.

        The caller's deadline is not the worker's: an impatient client must not cost a VNode its worker.
        Raises DeadlineExceeded where the turn did not come; BadRequest, TooLarge, SpecError, StepMismatch or
        BlobCorrupt of the command itself; WallClockBreach, LimitBreach or WorkerLost where the worker ended by it, and
        WorkerLost ever after.
        """
        try:
            with self._turns.taken(deadline_s):
                if self.child.ended.is_set():
                    raise WorkerLost(f"VNode {self.vnode!r} has no worker: {self._epitaph()}")
                return self._exchange(command, fields or {}, tensors)
        finally:
            self._free_after_end()

    def _exchange(self, command: str, fields: Mapping[str, Any], tensors: Sequence[TensorBytes]) -> WorkerReply:
        slots = self._inbox.pack(tensors)
        self._sequence += 1
        request = {"sequence": self._sequence, "command": command, "fields": dict(fields)}
        with self._guarded(command):
            try:
                raw = frames.encode({**request, "tensors": shared.to_wire(slots)})
            except frames.FrameError as error:
                raise BadRequest(str(error)) from None
            if self._has_spoken():
                self._refuse_unasked()
            allowance = self._allowance()
            self._channel.sendmsg([raw], [], socket.MSG_NOSIGNAL)
            reply = self._reply(command, allowance)
            return self._opened(reply, command)

    @contextmanager
    def _guarded(self, command: str) -> Iterator[None]:
        """Turn a broken protocol or a broken socket into the end of the worker."""
        try:
            yield
        except frames.FrameError as error:
            raise self.child.wait_end(Doom("protocol", f"broke the protocol in {command!r}: {error}")) from None
        except OSError:
            # The socket is gone, so the worker is about to be, by itself.
            gone = Doom("protocol", f"closed its socket in {command!r}")
            raise self.child.wait_end(gone, grace_s=_LEAVE_S) from None

    def _allowance(self) -> Allowance:
        limits = self.child.limits
        return Allowance(self.pid or 0, limits.cpu_s, self._wall_s, limits.num_threads)

    def _reply(self, command: str, allowance: Allowance) -> frames.Frame:
        """The next frame, within the wall clock and the processor time of a command."""
        over = allowance.await_readable(self._channel)
        if over == "wall":
            message = f"went over its {self._wall_s:g} s of wall clock in {command!r}"
            raise self.child.wait_end(Doom("wall_clock", message, {"limit_s": self._wall_s}))
        if over == "cpu":
            message = f"went over its {allowance.cpu_s:g} s of processor time in {command!r}"
            raise self.child.wait_end(Doom("cpu", message, {"limit_s": allowance.cpu_s}))
        received = frames.receive(self._channel)
        if received is None:
            raise ConnectionResetError
        return received.frame

    def _refuse_unasked(self) -> NoReturn:
        if frames.receive(self._channel) is None:
            raise ConnectionResetError
        raise frames.FrameError("a reply that nobody asked for")

    def _opened(self, reply: frames.Frame, command: str) -> WorkerReply:
        """The reply, checked; tensors are copied out once."""
        if frames.integer(reply, "sequence") != self._sequence:
            raise frames.FrameError("a reply to another command")
        if "error" in reply:
            self._raise(frames.table(reply, "error"), command)
        fields = frames.table(reply, "fields")
        if not all(isinstance(value, _SCALARS) for value in fields.values()):
            raise frames.FrameError("a field of a reply is no scalar")
        slots = shared.from_wire(reply.get("tensors"), self._outbox.size)
        return WorkerReply(fields, self._outbox.copy(slots))

    def _raise(self, body: frames.Frame, command: str) -> NoReturn:
        error = faults.from_wire(body)
        if not isinstance(error, Doom):
            raise error
        log.error("VNode %s: %s in %r\n%s", self.vnode, error.message, command, faults.trace_of(body))
        self.child.expect(error)
        self._channel.shutdown(socket.SHUT_RDWR)
        raise self.child.wait_end(error, grace_s=_LEAVE_S)

    def _has_spoken(self) -> bool:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        return bool(poll.poll(0))

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
        with suppress(DeadlineExceeded), self._turns.taken(_LEAVE_S):
            self._free()

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
