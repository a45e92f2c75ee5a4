"""Exactly once, whatever happens: the whole protocol under a scheduler that chooses every order and every misfortune.

Real: ledger, hosted VNodes, chain, stage, pipeline and driver. Chosen: who goes on, which messages are lost, doubled,
late or cancelled, and when workers, nodes and drivers die. Every state that any VNode ever reaches is the undisturbed
run's, nothing is accumulated or applied twice, and when the storm is over the run ends, at the undisturbed digest.
"""

from __future__ import annotations

import os
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from node_world import MAX_BYTES, RUN, batch
from once_fibers import FOREVER_S, FiberEvent, FiberExecutor, Scheduler
from once_network import FATES, Network
from once_nodes import MICROBATCHES, MOMENTS, STEPS, truth
from once_steward import ORCHESTRATOR, Steward

from pnode.client import events, pipeline
from pnode.client.driver import Driver, DriverSettings
from pnode.errors import LeaseLost
from pnode.v1 import orchestrator_pb2

# Turns in which a run must end once nothing befalls it any more.
PROMPT = 6000
HOMES = [("a", "b", "c"), ("a", "b", "a"), ("a", "a", "a")]


class Trainer:
    """A driver's process."""

    def __init__(self, number: int, steward: Steward, network: Network, every: int) -> None:
        self.number = number
        self._scheduler = network.scheduler
        self.final: orchestrator_pb2.CheckpointReply | None = None
        self.replaced = self.lost = False
        driver_settings = DriverSettings(
            steps=STEPS,
            num_microbatches=MICROBATCHES,
            checkpoint_every=every,
            call_s=FOREVER_S,
            patience_s=FOREVER_S,
            backoff_s=0.0,
            max_whole_bytes=MAX_BYTES,
        )
        self.driver = Driver(
            orchestrator_pb2.RunSpec(id=RUN, vnodes=steward.specs),
            driver_settings,
            batch,
            runs=network.stub(ORCHESTRATOR, "runs"),
            orchestrator=network.stub(ORCHESTRATOR, "orchestrator"),
            vnodes=lambda address: network.stub(address, "vnodes"),
            on_event=self._heard,
        )
        self._real = self.driver._closing
        self.driver._closing = FiberEvent(self._scheduler)
        self.driver._threads = self.driver._reports = FiberExecutor(self._scheduler, self)  # type: ignore[assignment]
        self._scheduler.spawn(f"driver {number}", self, self._train)

    def _heard(self, event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.loss is not None:
            assert event.loss == truth()[1][event.step]

    def _train(self) -> None:
        try:
            self.final = self.driver.train()
        except LeaseLost:
            self.lost = True
            assert self.number or self.replaced, "a driver alone loses no lease"

    def end(self) -> None:
        """SIGKILL, when it has not ended."""
        self._scheduler.kill(self)
        self._real.set()
        self.driver._lease.close()


class Storm(RuleBasedStateMachine):
    """What befalls a run, rule by rule; at the end calm, in which it must end."""

    @initialize(
        homes=st.sampled_from(HOMES),
        window=st.integers(1, MICROBATCHES),
        every=st.integers(1, 2),
        reply_bytes=st.sampled_from([0, 1000, 1 << 20]),
    )
    def begin(self, homes: tuple[str, ...], window: int, every: int, reply_bytes: int) -> None:
        truth()
        self.scheduler = Scheduler()
        self.network = Network(self.scheduler)
        self.steward = Steward(self.network, homes, window, reply_bytes)
        self.every = every
        self.trainers: list[Trainer] = []
        # What the pipeline waits with is the standard library's; here waiting is a matter of turns.
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(pipeline, "wait", self.scheduler.wait)
        self._drive()

    def _drive(self) -> None:
        for before in self.trainers:
            before.replaced = True
        self.trainers.append(Trainer(len(self.trainers), self.steward, self.network, self.every))

    @property
    def trainer(self) -> Trainer:
        return self.trainers[-1]

    @rule(choices=st.lists(st.integers(0, 30), min_size=5, max_size=40))
    def go_on(self, choices: list[int]) -> None:
        for choice in choices:
            self.scheduler.turn(choice)

    @rule(choice=st.integers(0, 30), num=st.integers(10, 80))
    def prefer(self, choice: int, num: int) -> None:
        """One sort of choice for long: some are starved, others race ahead."""
        for _ in range(num):
            self.scheduler.turn(choice)

    @rule(fates=st.lists(st.sampled_from(("", *FATES)), min_size=1, max_size=8))
    def befall(self, fates: list[str]) -> None:
        self.network.fates.extend(fates)

    @rule(commands=st.integers(0, 12), moment=st.sampled_from(MOMENTS))
    def kill_a_worker(self, commands: int, moment: str) -> None:
        self.steward.witness.deaths.extend([*[""] * commands, moment])

    @rule(which=st.integers(0, 2))
    def kill_a_node(self, which: int) -> None:
        name = self.steward.homes[self.steward.ids[which]]
        self.network.kill(self.steward.nodes[name])
        self.steward.start_node(name)

    @rule(how=st.sampled_from(["lives on", "dies", "dies, and what it sent last is lost"]))
    def replace_the_driver(self, how: str) -> None:
        """The one before may live on as a zombie."""
        if self.trainer.final is None and len(self.trainers) < 5:
            before = self.trainer
            self._drive()
            if how != "lives on":
                before.end()
            if how == "dies, and what it sent last is lost":
                self.network.lose_what_left(before)

    @rule()
    def look(self) -> None:
        self.steward.look()

    @rule()
    def recover_without_need(self) -> None:
        if self.steward.generation < 8:
            self.steward.recover()

    def teardown(self) -> None:
        if not hasattr(self, "patch"):
            return
        try:
            self._calm()
        finally:
            for trainer in self.trainers:
                trainer.end()
            for fiber in list(self.scheduler.fibers):
                self.scheduler.kill(fiber.process)
            self.patch.undo()

    def _calm(self) -> None:
        self.network.fates.clear()
        self.steward.witness.deaths.clear()
        begun = self.scheduler.turns
        number = 0
        while self.trainer.final is None:
            number += 1
            if self.trainer.lost:
                self._drive()  # a zombie came later with its Submit
            self.scheduler.turn(number)
            if number % 50 == 0:
                self.steward.look()
            assert self.scheduler.turns - begun < PROMPT, [fiber.name for fiber in self.scheduler.fibers]
        records = self.trainer.final.records
        assert [record.sha256 for record in records] == truth()[0][STEPS]
        assert self.steward.witness.num_applied >= STEPS * len(records)
        assert self.steward.manifest[0] == STEPS


def storm(**more: Any) -> settings:
    return settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, **more)


def test_exactly_once_in_a_short_storm() -> None:
    run_state_machine_as_test(Storm, settings=storm(max_examples=40, stateful_step_count=20, derandomize=True))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_exactly_once_in_a_long_storm() -> None:
    """PNODE_STORMS: how many examples."""
    examples = int(os.environ.get("PNODE_STORMS", "2000"))
    run_state_machine_as_test(Storm, settings=storm(max_examples=examples, stateful_step_count=40))
