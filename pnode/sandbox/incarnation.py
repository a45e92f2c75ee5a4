"""One life of the zygote, watched: its frames, its children's exits, and the end of them all when it ends."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from pnode.errors import Unavailable
from pnode.sandbox import frames
from pnode.sandbox.child import Child
from pnode.sandbox.launch import Launched
from pnode.sandbox.verdict import Doom, ExitStatus, Kind

log = logging.getLogger(__name__)

# The zygote reaps within milliseconds. If it is stuck, its dead children are settled without an exit status.
_REAP_S = 2.0
_REAP_CHECK_MS = 100
# PDEATHSIG takes the children along; that long we wait to see it.
_BURY_S = 5.0
_RETRY_AFTER_S = 1.0


class Incarnation:
    """`serve` runs in the supervisor's thread; `request` may be called from any."""

    def __init__(self, launched: Launched, wake_fd: int, on_status: Callable[[frames.Frame], None]) -> None:
        self._launched = launched
        self._wake_fd = wake_fd
        self._on_status = on_status
        self._lock = threading.Lock()
        self._next_id = 0
        self._ended = False
        self._asked: dict[int, Child] = {}  # by id of the request
        self._children: dict[int, Child] = {}  # by pid
        self._unreaped: dict[int, float] = {}  # by pid: when it ended
        self._watched: dict[int, int] = {}  # pid by pidfd
        self._poll = select.poll()

    @property
    def pid(self) -> int:
        """Of the zygote."""
        return self._launched.process.pid

    def request(self, child: Child, kind: str, fds: Sequence[int]) -> None:
        """Ask for a fork. Raises Unavailable where the zygote is gone or takes nothing."""
        limits = child.limits
        with self._lock:
            if self._ended:
                raise Unavailable("the zygote has ended", retry_after_s=_RETRY_AFTER_S)
            self._next_id += 1
            self._asked[self._next_id] = child
            frame = {"type": kind, "id": self._next_id, **limits.to_wire()}
            try:
                frames.send(self._launched.channel, frame, fds)
            except OSError as error:
                self._asked.pop(self._next_id, None)
                raise Unavailable(f"the zygote takes no requests: {error}", retry_after_s=_RETRY_AFTER_S) from None

    # The supervisor's thread

    def serve(self, stopping: Callable[[], bool]) -> None:
        """Watch until the zygote ends, or `stopping` says so after a wake. `bury` must follow."""
        zygote_fd = os.pidfd_open(self.pid)
        try:
            for fd in (self._launched.channel.fileno(), zygote_fd, self._wake_fd):
                self._poll.register(fd, select.POLLIN)
            while not stopping() and self._turn(zygote_fd):
                pass
        except frames.FrameError:
            log.exception("the zygote broke the protocol; it is replaced")
        finally:
            os.close(zygote_fd)

    def _turn(self, zygote_fd: int) -> bool:
        """Take what is there. False once the zygote is gone."""
        for fd, _ in self._poll.poll(_REAP_CHECK_MS if self._unreaped else None):
            if fd == zygote_fd:
                return False
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            elif fd in self._watched:
                self._child_ended(fd)
            elif fd == self._launched.channel.fileno() and not self._frame():
                return False
        self._give_up_unreaped()
        return True

    def _frame(self) -> bool:
        try:
            received = frames.receive(self._launched.channel, max_fds=1)
        except ConnectionResetError:
            return False
        if received is None:
            return False
        frame, fds = received
        match frames.text(frame, "type"):
            case "forked" if len(fds) == 1:
                self._forked(frame, fds[0])
            case "refused":
                self._answered(frame).refuse(frames.text(frame, "message"))
            case "exit":
                self._reaped(frame)
            case _:
                frames.close_all(fds)
                self._on_status(frame)
        return True

    def _answered(self, frame: frames.Frame) -> Child:
        # Without the lock, which a sender may hold until the zygote takes its request.
        child = self._asked.pop(frames.integer(frame, "id"), None)
        if child is None:
            raise frames.FrameError("an answer to no request")
        return child

    def _forked(self, frame: frames.Frame, pidfd: int) -> None:
        child, pid = self._answered(frame), frames.integer(frame, "pid")
        self._children[pid] = child
        self._watched[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        child.attach(pid, pidfd)

    def _child_ended(self, pidfd: int) -> None:
        """Its pidfd says so; why is known once the zygote has reaped it."""
        self._unreaped[self._watched[pidfd]] = time.monotonic()
        self._unwatch(pidfd)

    def _unwatch(self, pidfd: int) -> None:
        if self._watched.pop(pidfd, None) is not None:
            self._poll.unregister(pidfd)

    def _reaped(self, frame: frames.Frame) -> None:
        pid = frames.integer(frame, "pid")
        status = ExitStatus(
            frames.integer(frame, "code"), frames.number(frame, "cpu_s"), frames.integer(frame, "max_rss_bytes")
        )
        self._settle(pid, status)

    def _settle(self, pid: int, status: ExitStatus | None) -> None:
        self._unreaped.pop(pid, None)
        child = self._children.pop(pid, None)
        if child is None:
            return
        self._unwatch(child.pidfd)
        try:
            child.settle(status)
        except Exception:  # a caller's on_exit must not end the watch over the other workers
            log.exception("the callback for the end of worker %d failed", pid)

    def _give_up_unreaped(self) -> None:
        late = time.monotonic() - _REAP_S
        for pid in [pid for pid, ended in self._unreaped.items() if ended < late]:
            self._settle(pid, None)

    def bury(self, kind: Kind, why: str) -> None:
        """Leave nothing alive: pending requests are refused, children killed, the zygote ended and reaped."""
        with self._lock:
            self._ended = True
            asked, self._asked = list(self._asked.values()), {}
        for child in asked:
            child.refuse(why)
        for child in self._children.values():
            child.doom(Doom(kind, why))
        deadline = time.monotonic() + _BURY_S
        for pid, child in list(self._children.items()):
            _await_orphan(child.pidfd, deadline - time.monotonic())
            self._settle(pid, None)
        code = self._launched.end(grace_s=1.0)
        log.log(logging.ERROR if kind == "parent" else logging.DEBUG, "zygote %d ended with code %d", self.pid, code)


def _await_orphan(pidfd: int, timeout_s: float) -> None:
    if pidfd < 0:
        return
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(max(0, int(timeout_s * 1000)))
    # Orphans fall to process 1; in a container without an init that is us, and nobody else would reap them.
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
