"""The zygote: loads torch and every kernel once, in one thread, then forks workers.

Run as `python -P -m pnode.sandbox.zygote FD PID`: its end of a socket pair, and the front that must be its parent.

The front starts it by exec, so whatever threads the front has (gRPC's among them) do not exist here: fork is safe as
long as this process itself has a single thread, which is checked before every fork. It never parses a byte that came
from outside the front, and never wakes a GPU's driver.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from pnode.sandbox import box, confinement, frames, limits, worker
from pnode.sandbox.program import Load, Program
from pnode.sandbox.verdict import EXIT_ORPHAN


class Zygote:
    """Serves fork requests and tells of exits until the front closes its end."""

    def __init__(self, channel: socket.socket, program: Program) -> None:
        self._channel = channel
        self._program = program
        self._pids: dict[int, int] = {}  # by pidfd
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)

    def serve(self) -> None:
        """Poll the front and the children. Returns once the front has closed its end."""
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._channel.fileno():
                    self._reap(fd)
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        received = frames.receive(self._channel, max_fds=4)
        if received is None:
            return False
        frame, fds = received
        try:
            self._fork(frames.integer(frame, "id"), self._body(frame, fds), fds, limits.WorkerLimits.from_wire(frame))
        except OSError as error:
            message = f"fork: {error.strerror}"
            frames.send(self._channel, {"type": "refused", "id": frame["id"], "message": message})
        finally:
            frames.close_all(fds)
        return True

    def _body(self, frame: frames.Frame, fds: tuple[int, ...]) -> Callable[[], worker.Body]:
        """What opens in the child what it needs, and gives what it will run."""
        bounds = limits.WorkerLimits.from_wire(frame)

        def probe() -> worker.Body:
            return self._probe_over(socket.socket(fileno=fds[0]))

        def serve() -> worker.Body:
            commands = self._program.commands(num_threads=bounds.num_threads, device=bounds.device)
            return worker.attach(fds, bounds=bounds, commands=commands)

        return probe if frames.text(frame, "type") == "probe" else serve

    def _probe_over(self, channel: socket.socket) -> worker.Body:
        def body() -> int:
            frames.send(channel, self._program.probe())
            return 0

        return body

    def _fork(
        self, ident: int, prepare: Callable[[], worker.Body], fds: tuple[int, ...], bounds: limits.WorkerLimits
    ) -> None:
        num_threads = confinement.num_threads()
        if num_threads != 1:
            message = f"the zygote has {num_threads} threads; a fork would copy their locks, held by nobody"
            frames.send(self._channel, {"type": "refused", "id": ident, "message": message})
            return
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            worker.enter(prepare, parent=parent, keep=fds, stderr=fds[-1], bounds=bounds)
        # Only this thread reaps, and not before it has this: the number cannot be of another process.
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._pids[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        frames.send(self._channel, {"type": "forked", "id": ident, "pid": pid}, (pidfd,))

    def _reap(self, pidfd: int) -> None:
        pid = self._pids.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        notice = {
            "type": "exit",
            "pid": pid,
            "code": os.waitstatus_to_exitcode(status),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "max_rss_bytes": usage.ru_maxrss * 1024,
        }
        frames.send(self._channel, notice)

    def close(self) -> None:
        """Leave no child behind."""
        for pidfd in self._pids:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)


def run(fd: int, front: int, load: Load) -> int:
    """Load, report readiness on the socket `fd`, serve. `front` is the process that must be our parent."""
    if not confinement.die_with_parent(front):
        return EXIT_ORPHAN
    # A session of its own has no terminal, but `kill -INT` on a group still may come; the front decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limits.raise_num_files()
    channel = socket.socket(fileno=fd)
    channel.set_inheritable(False)
    started = time.monotonic()
    try:
        program = load(lambda text: frames.send(channel, {"type": "progress", "message": text}))
    except Exception as error:  # noqa: BLE001 - the boundary of a process: the front must hear why
        frames.send(channel, {"type": "failed", "message": _one_line(error)})
        return 1
    box.prepare()
    gc.collect()
    gc.freeze()
    ready = {"type": "ready", "seconds": time.monotonic() - started, "num_threads": confinement.num_threads()}
    frames.send(channel, {**ready, "image_bytes": limits.image_bytes()})
    zygote = Zygote(channel, program)
    try:
        zygote.serve()
    except (BrokenPipeError, ConnectionResetError):
        # The front went first; so do we.
        return 0
    finally:
        zygote.close()
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:2_000]


def _load(note: Callable[[str], None]) -> Program:
    note("importing torch")
    # Imported here and not above: the note must be out before the seconds that this takes.
    from pnode.sandbox.stage_program import load  # noqa: PLC0415

    return load(note)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), _load))
