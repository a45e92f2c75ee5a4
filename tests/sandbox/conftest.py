"""Real zygotes, workers and signals; nothing left over afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sandbox_specs import linear_spec
from sandbox_world import DEADLINE_S, Exits, hostile

from pnode.sandbox.supervisor import WorkerProcess, ZygoteProcess
from pnode.v1 import spec_pb2


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
