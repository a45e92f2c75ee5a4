"""The window of microbatches of one step, where an answer comes later than it was waited for."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as really_wait
from concurrent.futures._base import DoneAndNotDoneFutures
from typing import Any

import pytest
from client_rows import make_batch

from pnode.client import pipeline
from pnode.client.pipeline import Pipeline
from pnode.errors import DeadlineExceeded
from pnode.transport.api import TrainReply, TrainRequest
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.retry import Backoff
from pnode.v1 import orchestrator_pb2, spec_pb2, vnode_pb2


class LateVNode:
    """Answers its first Train when `may_answer` is set."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.microbatches: list[int] = []

    def train(self, parcel: TrainRequest, deadline: Deadline) -> TrainReply:
        self.microbatches.append(parcel.head.microbatch)
        assert self.may_answer.wait(deadline.left_s())
        return Parcel(vnode_pb2.TrainReply())


def test_a_step_whose_window_opened_too_late_has_not_trained_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may apply it: VNodes that have the rest from an earlier try would follow, this one would not."""
    vnode = LateVNode()

    def wait(futures: Collection[Future[Any]], **how: Any) -> DoneAndNotDoneFutures[Any]:
        if how.get("return_when") == FIRST_COMPLETED:
            vnode.may_answer.set()  # just after its time
            return DoneAndNotDoneFutures(set(), set(futures))
        return really_wait(futures, **how)

    monkeypatch.setattr(pipeline, "wait", wait)
    location = orchestrator_pb2.Location(fence=vnode_pb2.Fence(run="run", vnode="stage1", generation=1, epoch=1))
    with ThreadPoolExecutor(2) as threads:
        calls = Pipeline(
            orchestrator_pb2.RunStatus(id="run", generation=1, locations=[location]),
            lambda address: vnode,  # type: ignore[arg-type, return-value]  # has what is asked of it
            threads,
            specs=[spec_pb2.VNodeSpec(id="stage1", window=1)],
            call_s=10.0,
            grace_s=0.01,
            max_whole_bytes=1 << 20,
            backoff=lambda: Backoff(0.0),
            closing=threading.Event(),
            on_failure=lambda fence, error: None,
        )
        with pytest.raises(DeadlineExceeded, match="only 1 of 2 microbatches of step 0 were sent"):
            calls.train(0, make_batch(0), 2)
    assert vnode.microbatches == [0]
