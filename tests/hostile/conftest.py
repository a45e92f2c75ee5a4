"""The hostile program of the sandbox's tests, in zygotes whose boxes have all layers or one of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "sandbox"))

from sandbox_specs import linear_spec
from sandbox_world import DEADLINE_S, Exits, hostile

from pnode.sandbox.supervisor import WorkerProcess, ZygoteProcess


@pytest.fixture
def exits() -> Exits:
    return Exits()


@pytest.fixture(scope="module")
def zygote() -> Iterator[ZygoteProcess]:
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S) as started:
        yield started


@pytest.fixture
def worker(zygote: ZygoteProcess, exits: Exits) -> Iterator[WorkerProcess]:
    forked = zygote.fork(linear_spec(), on_exit=exits)
    yield forked
    forked.close()
