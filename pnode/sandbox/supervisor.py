"""The front's side of the sandbox: keeps one zygote alive, has it fork workers, and tells of their ends at once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from pnode.errors import ConfigError, DeadlineExceeded, Unavailable
from pnode.sandbox import layers, probing, usage
from pnode.sandbox import limits as worker_limits
from pnode.sandbox.frames import Frame, FrameError, integer, number, text
from pnode.sandbox.incarnation import Incarnation
from pnode.sandbox.launch import ZYGOTE, launch
from pnode.sandbox.process import WorkerProcess, WorkerReply
from pnode.sandbox.verdict import Verdict
from pnode.v1 import spec_pb2
from pnode.v1.tensor_pb2 import DTYPE_U8
from pnode.vnode.tensors import TensorBytes

__all__ = ["OnExit", "Verdict", "WorkerProcess", "WorkerReply", "ZygoteProcess"]

log = logging.getLogger(__name__)

OnExit = Callable[[WorkerProcess, Verdict], None]

# A zygote that dies again and again is started ever later, up to this; one that lasted so long is forgiven.
_FIRST_RESTART_S = 0.1
_LAST_RESTART_S = 30.0
_RETRY_AFTER_S = 1.0
# Burying a zygote and its workers takes seconds at the worst.
_END_S = 30.0


class ZygoteProcess:
    """A zygote that is restarted when it dies. Its workers die with it. Thread-safe; a context manager."""

    def __init__(
        self,
        *,
        num_threads: int,
        device: str,
        offered: Sequence[str],
        on_progress: Callable[[str], None] | None,
        on_doubt: Callable[[str], None] | None,
        program: Sequence[str],
    ) -> None:
        self.num_threads = num_threads
        self.device = device
        self._offered = tuple(offered)
        self._on_progress = on_progress
        self._program = program
        self._changed = threading.Condition()
        self._young: Incarnation
        self._ready: Incarnation | None = None
        self._was_ready = False
        self._note = "starting"
        self._failure: str | None = None
        self._witness = probing.Witness(on_doubt)
        self._closing = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # One thread for all its life: the zygote dies with the thread that started it.
        self._thread = threading.Thread(target=self._supervise, name="sandbox-supervisor", daemon=True)

    @classmethod
    def start(
        cls,
        *,
        num_threads: int = 1,
        device: str = "cpu",
        deadline_s: float = 300.0,
        require: Sequence[str] = (),
        offered: Sequence[str] | None = None,
        on_progress: Callable[[str], None] | None = None,
        on_doubt: Callable[[str], None] | None = None,
        program: Sequence[str] = ZYGOTE,
    ) -> Self:
        """Start a zygote and wait until it can fork. With a cold kernel cache that takes about a minute.

        device: `cpu`, `cuda`, or `auto` for the GPU where torch finds one. num_threads: of kernels, per worker.
        require: the layers of the box (layers.py) without which it does not start. offered: those that there are, for
        benchmarks; found out where it is None. on_progress: told, from another thread, what it is busy with. on_doubt:
        told where a zygote that replaced a dead one computes other bits; it serves no VNode of samebits then. program:
        for tests.
        Raises ConfigError where it cannot work on this machine, DeadlineExceeded where it takes too long.
        """
        offered = layers.found() if offered is None else offered
        layers.check(offered, require)
        zygote = cls(
            num_threads=num_threads, device=device, offered=offered, on_progress=on_progress, on_doubt=on_doubt,
            program=program,
        )  # fmt: skip
        started = time.monotonic()
        zygote._thread.start()
        try:
            zygote._await_ready(deadline_s)
            if device != "cpu":
                zygote._choose_device(max(1.0, deadline_s - (time.monotonic() - started)))
        except BaseException:
            zygote.close()
            raise
        return zygote

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it can do

    @property
    def pid(self) -> int | None:
        """Of the zygote that is ready now; None while there is none."""
        with self._changed:
            return None if self._ready is None else self._ready.pid

    def wait_ready(self, deadline_s: float) -> None:
        """Wait until forks are possible (again). Raises Unavailable."""
        self._await_incarnation(deadline_s)

    def fork(
        self,
        spec: spec_pb2.VNodeSpec,
        *,
        num_threads: int | None = None,
        on_exit: OnExit | None = None,
        deadline_s: float = 30.0,
    ) -> WorkerProcess:
        """A worker for `spec`, with the VNode instantiated at its initial state.

        on_exit is called once when the worker ends by anything but `close()` after this has returned it, from the
        supervisor's thread: it must not block. `spec` was validated by the caller.
        Raises Unavailable, SpecError, LimitBreach, WallClockBreach or WorkerLost.
        """
        started = time.monotonic()
        incarnation = self._await_incarnation(deadline_s)
        if spec.profile != "torch":
            self._witness.check(incarnation, max(0.0, deadline_s - (time.monotonic() - started)))
        try:
            worker = WorkerProcess(spec, self._limits(spec, num_threads or self.num_threads))
        except OSError as error:
            raise Unavailable(f"no descriptors or memory for a worker: {error}", retry_after_s=_RETRY_AFTER_S) from None
        try:
            incarnation.request(worker.child, "fork", worker.fds)
            worker.child.wait_attached(max(0.0, deadline_s - (time.monotonic() - started)))
            worker.handed_over()
            worker.image_bytes = usage.anonymous_bytes(incarnation.pid)
            raw = spec.SerializeToString(deterministic=True)
            worker.call("create", {}, [TensorBytes("spec", DTYPE_U8, (len(raw),), raw)], deadline_s=None)
            worker.report_end_to(on_exit)
        except BaseException:
            worker.close()
            raise
        return worker

    def _limits(self, spec: spec_pb2.VNodeSpec, num_threads: int) -> worker_limits.WorkerLimits:
        # The profile samebits-1 is for CPUs for now, whatever the node has.
        device = self.device if spec.profile == "torch" else "cpu"
        return worker_limits.of_spec(spec, num_threads=num_threads, device=device, offered=self._offered)

    @property
    def layers(self) -> tuple[str, ...]:
        """Of the boxes of workers on our device."""
        return layers.on_device(self._offered, self.device)

    @property
    def missing_layers(self) -> dict[str, str]:
        """The others, each with the reason."""
        if self.device == "cuda":
            return dict.fromkeys(layers.ALL, "a GPU's driver needs its devices, libraries and threads")
        return layers.missing(self._offered)

    def probe(self, deadline_s: float = 60.0) -> dict[str, Any]:
        """What torch finds here: `versions`, `gpus`, `cpu_capability`, and the `numerics_classes` of our device.

        `samebits` tells the `digest` of the self-test and the operators `differing` from the golden ones; the class
        samebits-1 is offered only where there are none. Asked once and remembered. Raises Unavailable.
        """
        found = dict(self._witness.ask(self._await_incarnation(deadline_s), deadline_s))
        theirs = found.pop("torch_classes", {}).get(self.device)
        proven = found.get("samebits", {}).get("differing") == []
        classes = (["samebits-1"] if proven else []) + ([theirs] if theirs else [])
        return {**found, "numerics_classes": classes}

    def _choose_device(self, deadline_s: float) -> None:
        found = bool(self.probe(deadline_s)["gpus"])
        if self.device == "cuda" and not found:
            raise ConfigError("device=cuda: torch finds no usable GPU here")
        self.device = "cuda" if found else "cpu"

    def close(self) -> None:
        """End the zygote and every worker; wait for them. Idempotent."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(_END_S)
        if self._thread.is_alive():
            log.error("the sandbox's supervisor does not end")
        else:
            os.close(self._wake_fd)

    # Waiting

    def _await_ready(self, deadline_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failure, deadline_s)
            if self._failure is not None:
                raise ConfigError(f"the sandbox cannot start: {self._failure}")
            if self._ready is None:
                raise DeadlineExceeded(f"the sandbox was not ready after {deadline_s:g} s: {self._note}")

    def _await_incarnation(self, deadline_s: float) -> Incarnation:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closing, deadline_s)
            if self._ready is None or self._closing:
                raise Unavailable(f"the zygote is not ready: {self._note}", retry_after_s=_RETRY_AFTER_S)
            return self._ready

    # The supervisor's thread

    def _supervise(self) -> None:
        pause_s = _FIRST_RESTART_S
        while not self._closing:
            started = time.monotonic()
            self._live()
            with self._changed:
                if self._failure is not None:
                    return
                lasted = time.monotonic() - started > _LAST_RESTART_S
                pause_s = _FIRST_RESTART_S if lasted else min(2 * pause_s, _LAST_RESTART_S)
                self._changed.wait_for(lambda: self._closing, pause_s)

    def _live(self) -> None:
        """One zygote from its start to its end. Sets `_failure` where not even the first became ready."""
        self._note = "starting"
        try:
            incarnation = Incarnation(launch(self._program), self._wake_fd, self._heard)
        except OSError as error:
            self._died(f"cannot start {self._program!r}: {error}")
            return
        self._young = incarnation
        try:
            incarnation.serve(lambda: self._closing)
        finally:
            # First of all nobody may ask it for anything any more: callbacks may fork at once.
            self._died(f"ended while {self._note}")
            closing = self._closing
            incarnation.bury("killed" if closing else "parent", "the node closes" if closing else "the zygote died")

    def _died(self, why: str) -> None:
        with self._changed:
            self._ready = None
            if not self._was_ready and self._failure is None and not self._closing:
                self._failure = why
            self._changed.notify_all()

    def _heard(self, frame: Frame) -> None:
        """What the zygote says of itself."""
        match text(frame, "type"):
            case "progress":
                self._progress(text(frame, "message"))
            case "failed":
                with self._changed:
                    self._note = text(frame, "message")
                    if not self._was_ready:
                        self._failure = self._note
                log.error("the zygote cannot start: %s", self._note)
            case "ready":
                seconds, image = number(frame, "seconds"), integer(frame, "image_bytes")
                log.info("zygote %d is ready after %.1f s, an image of %d MiB", self._young.pid, seconds, image >> 20)
                with self._changed:
                    self._ready, self._was_ready, self._note = self._young, True, "serving"
                    self._changed.notify_all()
            case _:
                raise FrameError("a frame of an unknown type")

    def _progress(self, message: str) -> None:
        self._note = message
        log.info("zygote: %s", message)
        if self._on_progress is None:
            return
        try:
            self._on_progress(message)
        except Exception:  # a display that fails must not end the watch
            log.exception("the callback for the zygote's progress failed")
