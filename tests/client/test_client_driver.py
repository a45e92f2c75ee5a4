"""The driver against a network that loses requests, replies and nodes: the same digest, whatever happens."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from client_fakes import FAULTS, FakeNetwork, FakeNode
from client_rows import make_batch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pnode.client import events
from pnode.client.batch import Batch
from pnode.client.cut import Plan, cut
from pnode.client.driver import Driver, DriverSettings
from pnode.client.local import LocalRun
from pnode.client.model import Model
from pnode.errors import BadRequest, Busy, Conflict, LeaseLost, PeerUnavailable, PNodeError, SpecError, Unavailable
from pnode.transport.api import TrainReply, TrainRequest
from pnode.transport.deadline import Deadline
from pnode.v1 import orchestrator_pb2

STEPS = 6
MICROBATCHES = 2


@pytest.fixture(scope="session")
def spec(model: Model, plan: Plan) -> orchestrator_pb2.RunSpec:
    return orchestrator_pb2.RunSpec(id="run", vnodes=cut(model, plan, stages=3))


@pytest.fixture(scope="session")
def losses_and_digest(model: Model, plan: Plan) -> tuple[list[float], str]:
    """The same job without any network."""
    run = LocalRun(cut(model, plan))
    return [run.step(step, make_batch(step)) for step in range(STEPS)], run.digest()


def driver(network: FakeNetwork, spec: orchestrator_pb2.RunSpec, heard: list[events.Event], **changes: Any) -> Driver:
    """A driver of this network that waits for milliseconds where a real one waits for seconds."""
    given: dict[str, Any] = {
        "steps": STEPS,
        "num_microbatches": MICROBATCHES,
        "checkpoint_every": 2,
        "patience_s": 30.0,
        "grace_s": 0.01,
        "call_s": 5.0,
    }
    given |= {"backoff_s": 0.001, "backoff_cap_s": 0.005, **changes}
    return Driver(
        spec,
        DriverSettings(**given),
        make_batch,
        runs=network,
        orchestrator=network,
        vnodes=network.at,
        on_event=heard.append,
    )


def standing(network: FakeNetwork, state: orchestrator_pb2.RunState.ValueType, message: str = "") -> None:
    """Have the run stay in one state, whatever happens."""
    status = orchestrator_pb2.RunStatus(id="run", state=state, message=message)
    network._status = lambda: status  # type: ignore[method-assign, assignment, unused-ignore]  # one method of the fake fails


def losses_of(heard: list[events.Event]) -> dict[int, float | None]:
    return {event.step: event.loss for event in heard if isinstance(event, events.StepDone)}


def test_a_run_without_faults(spec: orchestrator_pb2.RunSpec, losses_and_digest: tuple[list[float], str]) -> None:
    heard: list[events.Event] = []
    network = FakeNetwork()
    with driver(network, spec, heard) as driving:
        final = driving.train()
        driving.finish()
    losses, digest = losses_and_digest
    assert final.manifest_sha256 == digest
    assert [record.vnode for record in final.records] == ["stage1", "stage2", "stage3"]
    assert losses_of(heard) == dict(enumerate(losses))
    assert sorted(network.checkpoints) == [2, 4, 6]
    assert network.finished


def test_no_more_microbatches_are_under_way_than_the_narrowest_vnode_admits(
    model: Model, plan: Plan, losses_and_digest: tuple[list[float], str]
) -> None:
    specs = cut(model, plan, stages=3)
    specs[1].window = 2
    network = FakeNetwork()
    under_way: set[int] = set()
    most = [0]

    class Counted(FakeNode):
        """Counts the microbatches inside the first VNode."""

        def train(self, request: TrainRequest, deadline: Deadline) -> TrainReply:
            under_way.add(request.head.microbatch)
            most[0] = max(most[0], len(under_way))
            try:
                return super().train(request, deadline)
            finally:
                under_way.discard(request.head.microbatch)

    network.at = lambda address: Counted(network, int(address[-1]))  # type: ignore[method-assign]  # watched, not faked
    with driver(network, orchestrator_pb2.RunSpec(id="run", vnodes=specs), [], num_microbatches=8) as driving:
        final = driving.train()
    assert final.manifest_sha256 == losses_and_digest[1]
    assert most[0] == 2


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(faults=st.dictionaries(st.integers(0, 60), st.sampled_from(FAULTS), max_size=6), polls=st.integers(1, 3))
def test_no_fault_changes_a_bit(
    faults: dict[int, str], polls: int, spec: orchestrator_pb2.RunSpec, losses_and_digest: tuple[list[float], str]
) -> None:
    heard: list[events.Event] = []
    network = FakeNetwork(faults, polls)
    with driver(network, spec, heard) as driving:
        final = driving.train()
        driving.forward(make_batch(99))
    losses, digest = losses_and_digest
    assert final.manifest_sha256 == digest
    told = losses_of(heard)
    # A loss may go unheard when only the reply to the last Apply of a step was lost and the VNode then restored.
    assert {step: loss for step, loss in told.items() if loss is not None} == {
        step: losses[step] for step, loss in told.items() if loss is not None
    }


def test_a_lost_node_is_reported_once_and_the_replay_begins_at_the_checkpoint(
    spec: orchestrator_pb2.RunSpec, losses_and_digest: tuple[list[float], str]
) -> None:
    heard: list[events.Event] = []
    network = FakeNetwork({24: "kill"}, polls_to_recover=3)
    with driver(network, spec, heard) as driving:
        assert driving.train().manifest_sha256 == losses_and_digest[1]
    assert network.generation == 2
    assert {report.fence.generation for report in network.reports} == {1}
    served = [event for event in heard if isinstance(event, events.Serving)]
    assert [event.generation for event in served] == [1, 2]
    assert served[1].version in (2, 4)
    assert any(isinstance(event, events.Interrupted) for event in heard)
    assert any(isinstance(event, events.Waiting) for event in heard)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls=st.integers(1, 32))
def test_another_driver_goes_on_where_one_died(
    calls: int, spec: orchestrator_pb2.RunSpec, losses_and_digest: tuple[list[float], str]
) -> None:
    """The first one dies in the middle of whatever it does at that call."""
    network = FakeNetwork({calls: "deadline"})
    with driver(network, spec, [], patience_s=0.0, call_s=0.5) as first, pytest.raises(PNodeError):
        first.train()
    network.faults = {}
    with driver(network, spec, [], holder="second") as second:
        assert second.train().manifest_sha256 == losses_and_digest[1]


def test_a_driver_whose_run_was_taken_stops(spec: orchestrator_pb2.RunSpec) -> None:
    network = FakeNetwork()
    with driver(network, spec, [], steps=2) as first:
        first.train()
        with driver(network, spec, [], holder="second") as second:
            second.train()
        with pytest.raises(LeaseLost):
            first.train()


def test_what_recovery_cannot_mend_is_raised_at_once(spec: orchestrator_pb2.RunSpec) -> None:
    network = FakeNetwork()

    def broken(step: int) -> Batch:
        return make_batch(step, num_rows=8 if step < 2 else 40)

    driving = driver(network, spec, [])
    driving._batch = broken
    with driving, pytest.raises(BadRequest, match="rows"):
        driving.train()
    assert network.generation == 1


def test_a_finished_run_is_not_driven_again(spec: orchestrator_pb2.RunSpec) -> None:
    network = FakeNetwork()
    standing(network, orchestrator_pb2.RUN_STATE_FINISHED)
    with driver(network, spec, []) as driving, pytest.raises(Conflict, match="finished"):
        driving.train()


def test_a_failed_run_says_why(spec: orchestrator_pb2.RunSpec) -> None:
    network = FakeNetwork()
    standing(network, orchestrator_pb2.RUN_STATE_FAILED, "stage2 keeps dying")
    with driver(network, spec, []) as driving, pytest.raises(PNodeError, match="stage2 keeps dying"):
        driving.train()


def test_a_run_that_never_serves_ends_with_the_reason(spec: orchestrator_pb2.RunSpec) -> None:
    network = FakeNetwork()
    status = orchestrator_pb2.RunStatus(
        id="run", state=orchestrator_pb2.RUN_STATE_PLACING, message="no node has joined"
    )
    network._status = lambda: status  # type: ignore[method-assign, assignment, unused-ignore]  # one method of the fake fails
    heard: list[events.Event] = []
    with (
        driver(network, spec, heard, patience_s=3.0) as driving,
        pytest.raises(Unavailable, match="no node has joined"),
    ):
        driving.train()
    assert heard == [events.Waiting("no node has joined")]


def test_an_orchestrator_that_is_not_there_ends_with_the_reason(spec: orchestrator_pb2.RunSpec) -> None:
    network = FakeNetwork()

    def gone(*_: object) -> orchestrator_pb2.SubmitReply:
        raise PeerUnavailable("nobody listens there")

    network.submit = gone  # type: ignore[method-assign, assignment, unused-ignore]  # one method of the fake fails
    with driver(network, spec, [], patience_s=0.05) as driving, pytest.raises(PeerUnavailable, match="nobody listens"):
        driving.train()


def test_closing_a_driver_ends_its_waiting(spec: orchestrator_pb2.RunSpec) -> None:
    network = FakeNetwork()
    standing(network, orchestrator_pb2.RUN_STATE_PLACING, "no room")
    waiting = threading.Event()
    driving = driver(network, spec, [], backoff_s=60.0, backoff_cap_s=60.0)
    driving._tell = lambda event: waiting.set()
    failed: list[PNodeError] = []

    def train() -> None:
        try:
            driving.train()
        except PNodeError as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    assert waiting.wait(10)
    driving.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed" in failed[0].message


def test_a_missed_checkpoint_is_told_and_not_fatal(
    spec: orchestrator_pb2.RunSpec, losses_and_digest: tuple[list[float], str]
) -> None:
    heard: list[events.Event] = []
    network = FakeNetwork()
    asked = network.checkpoint

    def missing(request: orchestrator_pb2.CheckpointRequest, deadline: Deadline) -> orchestrator_pb2.CheckpointReply:
        if request.version == 2:
            raise Busy("the store is slow", retry_after_s=60.0)
        return asked(request, deadline)

    network.checkpoint = missing  # type: ignore[method-assign, assignment, unused-ignore]  # one method of the fake fails
    with driver(network, spec, heard, call_s=5.0) as driving:
        assert driving.train().manifest_sha256 == losses_and_digest[1]
    assert [event.version for event in heard if isinstance(event, events.CheckpointMissed)] == [2]


def test_a_spec_that_is_refused_is_told_at_once(spec: orchestrator_pb2.RunSpec) -> None:
    network = FakeNetwork()

    def refuse(*_: object) -> orchestrator_pb2.SubmitReply:
        raise SpecError("vnodes[0].id", "no")

    network.submit = refuse  # type: ignore[method-assign, assignment, unused-ignore]  # one method of the fake fails
    with driver(network, spec, []) as driving, pytest.raises(SpecError, match=r"vnodes\[0\]"):
        driving.train()
