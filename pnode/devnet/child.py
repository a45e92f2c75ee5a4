"""One child process of the devnet: started with a configuration file, known by its first line on stdout, always ended.

The kernel kills it when this process ends, however that happens; so start children from a thread that lasts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from pnode.errors import PNodeError

# Between looks at a child that is starting.
_LOOK_S = 0.1
_TAIL_BYTES = 8192

PNODE = ("-P", "-m", "pnode")


class Process(Protocol):
    """What others see of a child process."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def address(self) -> str: ...
    @property
    def exit_code(self) -> int | None: ...
    def tail(self, num_lines: int) -> str: ...
    def kill(self) -> None: ...


class Child:
    """A process whose stdout is JSON lines and whose stderr is its log.

    on_line: told of each JSON object, from a thread of the child's own. on_end: told the exit code, once.
    """

    def __init__(
        self,
        name: str,
        program: Sequence[str],
        log: Path,
        *,
        on_line: Callable[[dict[str, Any]], None] = lambda line: None,
        on_end: Callable[[int], None] = lambda code: None,
    ) -> None:
        self.name = name
        self.log = log
        self._on_line = on_line
        self._on_end = on_end
        self.serving: dict[str, Any] | None = None
        self._changed = threading.Condition()
        self._code: int | None = None
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, *program, "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                # A terminal's ^C is ours to pass on, in order.
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name=f"reads {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id; of no other process until `ended`."""
        return self._process.pid

    @property
    def address(self) -> str:
        """Where it serves; empty before it does."""
        return str((self.serving or {}).get("address", ""))

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._code

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None, "it was asked for"
        with stdout:
            self._read_lines(stdout)
        code = self._process.wait()
        with self._changed:
            self._code = code
            self._changed.notify_all()
        self._on_end(code)

    def _read_lines(self, stdout: IO[bytes]) -> None:
        for raw in stdout:
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if not isinstance(line, dict):
                continue
            with self._changed:
                if line.get("event") == "serving":
                    self.serving = line
                self._changed.notify_all()
            self._on_line(line)

    # Waiting

    def wait_serving(self, deadline_s: float, on_look: Callable[[Child], None] = lambda child: None) -> None:
        """Wait until it serves; `on_look` is called now and then meanwhile.

        Raises PNodeError with the log's last lines when it ended, or took too long.
        """
        until = time.monotonic() + deadline_s
        with self._changed:
            while self.serving is None and self._code is None and time.monotonic() < until:
                on_look(self)
                self._changed.wait(_LOOK_S)
        if self._code is not None:
            raise PNodeError(f"{self.name} ended with {described(self._code)}; its last lines:\n{self.tail(12)}")
        if self.serving is None:
            raise PNodeError(f"{self.name} did not serve in {deadline_s:g} s; its last lines:\n{self.tail(12)}")

    def wait_end(self, deadline_s: float) -> bool:
        """Whether it has ended before `deadline_s` passed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._code is not None, deadline_s)

    def tail(self, num_lines: int) -> str:
        """The last lines of its log."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-num_lines:])

    # Ending

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        with self._changed:
            if self._code is None:
                self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.signal(signal.SIGKILL)
        self.join()

    def join(self) -> None:
        """Wait for its end, which must be near, and for the thread that reads it."""
        self._reader.join(30.0)


def described(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def end_all(children: Sequence[Child], grace_s: float) -> None:
    """SIGTERM to all at once, SIGKILL to those that live on after `grace_s`. None is left."""
    for child in children:
        child.signal(signal.SIGTERM)
    until = time.monotonic() + grace_s
    for child in children:
        child.wait_end(max(0.0, until - time.monotonic()))
    for child in children:
        child.kill()
