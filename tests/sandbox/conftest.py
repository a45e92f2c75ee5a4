"""Real zygotes, workers and signals; a callback that can be waited for; nothing left over afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_specs import linear_spec

from pnode.sandbox.supervisor import Verdict, WorkerProcess, ZygoteProcess
from pnode.v1 import spec_pb2

DEADLINE_S = 20.0


class Exits:
    """An on_exit that collects and can be waited for."""

    def __init__(self) -> None:
        self.seen: list[tuple[WorkerProcess, Verdict]] = []
        self._changed = threading.Condition()

    def __call__(self, worker: WorkerProcess, verdict: Verdict) -> None:
        with self._changed:
            self.seen.append((worker, verdict))
            self._changed.notify_all()

    def wait(self, num: int = 1) -> list[Verdict]:
        """The verdicts, once there are `num`."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= num, DEADLINE_S), "nobody told of the end"
            return [verdict for _, verdict in self.seen]


def hostile(wish: str = "none") -> tuple[str, ...]:
    """The command line of a zygote whose workers misbehave on command."""
    return ("-P", str(Path(__file__).with_name("hostile_program.py")), wish)


def open_fds() -> set[str]:
    """Of this process."""
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def exits() -> Exits:
    return Exits()


@pytest.fixture(scope="module")
def hostile_zygote() -> Iterator[ZygoteProcess]:
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S) as zygote:
        yield zygote


@pytest.fixture
def spec() -> spec_pb2.VNodeSpec:
    return linear_spec()


@pytest.fixture
def worker(hostile_zygote: ZygoteProcess, spec: spec_pb2.VNodeSpec, exits: Exits) -> Iterator[WorkerProcess]:
    forked = hostile_zygote.fork(spec, on_exit=exits)
    yield forked
    forked.close()
