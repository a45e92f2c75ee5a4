"""A process that the zygote forks for the front: its pidfd, its end and the verdict, each known once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from pnode.errors import PNodeError, Unavailable
from pnode.sandbox.limits import WorkerLimits
from pnode.sandbox.verdict import Doom, ExitStatus, Verdict, judge

# A killed process is gone within milliseconds; one that hangs in the kernel is given up after this long.
_END_S = 10.0
# How soon a fork that was refused, or that the zygote's death ended, may be asked for again.
_RETRY_AFTER_S = 1.0


class Child:
    """Asked for, then attached (or refused), then ended. Thread-safe; the supervisor's thread moves it on."""

    def __init__(self, limits: WorkerLimits, on_end: Callable[[Verdict], None]) -> None:
        self.limits = limits
        self.pid: int | None = None
        self.verdict: Verdict | None = None
        self._on_end = on_end
        self._lock = threading.Lock()
        self._pidfd = -1
        self._doom: Doom | None = None
        self._refusal: str | None = None
        self._known = threading.Event()
        self.ended = threading.Event()

    # The supervisor's side

    @property
    def pidfd(self) -> int:
        """Readable once the process has ended; -1 before it is attached and after it was settled."""
        return self._pidfd

    def attach(self, pid: int, pidfd: int) -> None:
        """The fork succeeded. The pidfd is ours from here on. One that nobody waits for any more is killed."""
        with self._lock:
            self.pid, self._pidfd = pid, pidfd
            self._kill_if_doomed()
        self._known.set()

    def refuse(self, message: str) -> None:
        """The fork failed, or the zygote ended before it came to it."""
        self._refusal = message
        self._known.set()

    def settle(self, status: ExitStatus | None) -> None:
        """It has ended; the pidfd must not be polled any more. The first call decides."""
        with self._lock:
            if self.verdict is not None:
                return
            limits = self.limits
            self.verdict = judge(status, self._doom, memory_bytes=limits.memory_bytes, cpu_s=limits.cpu_s)
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
        self.ended.set()
        self._on_end(self.verdict)

    # The caller's side

    def wait_attached(self, deadline_s: float) -> None:
        """Raises Unavailable where the fork was refused or takes longer; one that comes late is killed at once."""
        if not self._known.wait(deadline_s):
            self.doom(Doom("killed", "its fork took too long"))
            raise Unavailable(f"the zygote did not fork within {deadline_s:.3g} s", retry_after_s=_RETRY_AFTER_S)
        if self._refusal is not None:
            raise Unavailable(f"no worker could be forked: {self._refusal}", retry_after_s=_RETRY_AFTER_S)

    def doom(self, doom: Doom) -> None:
        """Kill it for this reason, unless a reason stands already. Without effect on one that has ended."""
        with self._lock:
            if self._doom is None:
                self._doom = doom
            self._kill_if_doomed()

    def expect(self, doom: Doom) -> None:
        """Its own last words: the reason to report once it has ended, which it is about to do by itself."""
        with self._lock:
            if self._doom is None:
                self._doom = doom

    def wait_end(self, doom: Doom, *, grace_s: float = 0.0) -> PNodeError:
        """Wait for its end, for `grace_s` by itself and then by force, and return the error for its caller."""
        if grace_s == 0.0 or not self.ended.wait(grace_s):
            self.doom(doom)
            self.ended.wait(_END_S)
        verdict = self.verdict or Verdict(doom.kind, f"{doom.message}; the kernel has not let it go yet", doom.figures)
        return verdict.error()

    def _kill_if_doomed(self) -> None:
        """`_lock` must be held. The pidfd cannot be of another process, however soon the number is used again."""
        if self._doom is None or self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            # It ended by itself and was reaped; its exit notice is on the way.
            return
