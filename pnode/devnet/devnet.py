"""role=devnet: a network of processes on this machine, a job on it, a node killed on the way, the proof at the end."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pnode import roles
from pnode.client import events
from pnode.client.accuracy import accuracy
from pnode.client.driver import Driver, DriverSettings
from pnode.config import Settings
from pnode.devnet import report
from pnode.devnet.board import Board
from pnode.devnet.fleet import Fleet, run_reference
from pnode.devnet.killer import Killer
from pnode.devnet.plan import Plan, make_plan, with_own_store, with_seed
from pnode.devnet.view import shown
from pnode.errors import ConfigError, SpecError
from pnode.jobs.catalog import make_job
from pnode.jobs.job import Job
from pnode.observe import logs
from pnode.storage.content import get_content
from pnode.transport.addresses import parse_orchestrator
from pnode.transport.channels import ChannelPool
from pnode.transport.remote import RemoteOrchestrator, RemoteRuns, RemoteVNode
from pnode.v1 import orchestrator_pb2, vnode_pb2
from pnode.vnode import sizes
from pnode.vnode.state import run_digest


def run_devnet(settings: Settings) -> int:
    """Run it all; returns 0, or 1 where the digests differ. Raises ConfigError, PNodeError, KeyboardInterrupt."""
    job = make_job(settings.job)
    _check_cut(job)
    plan = make_plan(settings)
    settings = with_own_store(settings, plan)
    board = Board(_title(settings, job), job.steps)
    sys.stderr.write(f"pnode: this run's folder is {plan.folder}\n")
    with plan.path("logs", "devnet.log").open("w", encoding="utf-8") as log_file, _interruptible():
        logs.configure(settings.log.level, settings.log.format, log_file)
        try:
            with shown(board):
                line = _Run(settings, job, plan, board).complete()
        finally:
            logs.configure(settings.log.level, settings.log.format)
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    return 0 if line["bitwise_equal"] is not False else 1


def _check_cut(job: Job) -> None:
    try:
        job.cut(job.name)
    except SpecError as error:
        raise ConfigError(f"job: {error.message}") from None


def _title(settings: Settings, job: Job) -> str:
    parameters, nodes = f"{job.model.num_parameters:,} parameters", f"{settings.devnet.nodes} PNodes"
    return f"{job.name}: {parameters} in {job.stages} VNodes on {nodes}"


class _Run:
    """One devnet run, phase by phase."""

    def __init__(self, settings: Settings, job: Job, plan: Plan, board: Board) -> None:
        self._settings = settings
        self._job = job
        self._plan = plan
        self._board = board
        self._spec = orchestrator_pb2.RunSpec(id=plan.run, vnodes=job.cut(plan.run))
        self._seconds: dict[str, float] = {}
        self._found: dict[str, Any] = {"generation": 0, "reference_digest": None, "bitwise_equal": None, "faults": {}}

    def complete(self) -> dict[str, Any]:
        """Everything; returns the line for stdout."""
        with Fleet(self._settings, self._plan, self._board) as fleet:
            with self._phase("start"):
                fleet.start()
            killer = Killer(self._plan.kills, lambda: fleet.nodes, self._board.killed, fleet.bring_back)
            try:
                with self._phase("train"):
                    self._train(fleet, killer)
            finally:
                killer.close()
        reference = None
        if self._settings.devnet.reference:
            with self._phase("reference"):
                reference = self._compare()
        return self._write(killer, reference)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._seconds[name] = round(time.monotonic() - started, 3)

    # Training on the network

    def _train(self, fleet: Fleet, killer: Killer) -> None:
        job = self._job
        self._board.enter(f"training on {len(fleet.nodes)} PNodes")
        settings = DriverSettings(
            steps=job.steps,
            num_microbatches=job.num_microbatches,
            checkpoint_every=job.checkpoint.every_steps,
            holder=f"devnet-{os.getpid()}",
            call_s=self._settings.rpc.default_deadline_s,
            max_whole_bytes=self._settings.limits.whole,
        )

        def heard(event: events.Event) -> None:
            if isinstance(event, events.Serving):
                self._found["generation"] = event.generation
            self._board.event(event)
            killer.event(event)

        weather = roles.weather(with_seed(self._settings, self._plan), "driver", fleet.count)
        self._found["faults"] = fleet.faults
        address = str(parse_orchestrator(fleet.orchestrator.address).address)
        passes = roles.driver_passes(self._settings, fleet.orchestrator.address)
        with (
            ChannelPool(
                max_message_bytes=self._settings.limits.message,
                max_whole_bytes=self._settings.limits.whole,
                compresses=self._settings.rpc.compression == "zstd",
                weather=weather,
                passes=passes,
            ) as channels,
            Driver(
                self._spec,
                settings,
                job.batch,
                runs=RemoteRuns(channels, address),
                orchestrator=RemoteOrchestrator(channels, address),
                vnodes=lambda at: RemoteVNode(channels, at),
                on_event=heard,
            ) as driver,
        ):
            try:
                self._train_and_test(driver)
            except BaseException:
                # Whatever the driver waits for would otherwise have to run into its deadline.
                fleet.end(grace_s=0.0)
                raise

    def _train_and_test(self, driver: Driver) -> None:
        job = self._job
        final = driver.train()
        logits = driver.forward(job.test)[0]
        self._found["test_accuracy"] = accuracy(logits, job.test)
        self._found["digest"] = run_digest(self._states(list(final.records)))
        driver.finish()
        self._board.note(f"test accuracy {self._found['test_accuracy']:.4f}, digest {self._found['digest'][:16]}")

    def _states(self, records: list[vnode_pb2.StateRecord]) -> list[bytes]:
        """The state of every VNode, from the store that the nodes put it into."""
        largest = {spec.id: sizes.state_bytes(spec) for spec in self._spec.vnodes}
        with roles.opened_store(self._settings) as store:
            return [get_content(store, record.sha256, max_bytes=largest[record.vnode]) for record in records]

    # The reference

    def _compare(self) -> dict[str, Any]:
        self._board.enter("training the same job in one process, without any network")
        reference = run_reference(self._settings, self._plan, self._board)
        equal = reference["digest"] == self._found["digest"]
        self._found |= {"reference_digest": reference["digest"], "bitwise_equal": equal}
        self._board.note("bitwise equal" if equal else "THE DIGESTS DIFFER")
        return reference

    # The end

    def _write(self, killer: Killer, reference: dict[str, Any] | None) -> dict[str, Any]:
        board, plan = self._board, self._plan
        started = time.monotonic()
        report.draw_losses(plan.path("loss.png"), board, killer.done, board.title)
        self._seconds["report"] = round(time.monotonic() - started, 3)
        line = report.summary(plan, self._job, board, killer.done, self._found)
        report.write_report(
            plan.path("report.json"),
            settings=self._settings,
            plan=plan,
            board=board,
            kills=killer.done,
            line=line,
            seconds=self._seconds,
            reference=reference,
        )
        board.note(f"loss.png and report.json are in {plan.folder}")
        return line


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the run as ^C does: by an exception in the main thread, so that every child is ended."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        # Once is enough: what follows is the cleaning up.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
