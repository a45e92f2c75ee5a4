"""The devnet's processes: one orchestrator and its nodes, started in order, and all of them ended whatever happens."""

from __future__ import annotations

import os
import queue
import threading
from collections import Counter
from typing import Any

from pnode.config import Settings
from pnode.devnet.board import Board
from pnode.devnet.child import PNODE, Child, described, end_all
from pnode.devnet.plan import Plan, node_changes, orchestrator_changes, write_config
from pnode.errors import PNodeError

_ORCHESTRATOR_S = 60.0
# A node that is asked to leave has nothing to do any more; it takes as long as its processes take to end.
_GRACE_S = 5.0
_REFERENCE = ("-P", "-m", "pnode.devnet.reference")


class Fleet:
    """Use as a context: at its end no process is left."""

    def __init__(self, settings: Settings, plan: Plan, board: Board) -> None:
        self._settings = settings
        self._plan = plan
        self._board = board
        self._ending = False
        self._orchestrators: list[Child] = []
        self.nodes: list[Child] = []
        self.faults: Counter[str] = Counter()
        # Children die with the thread that started them: those that come back need one that lasts.
        self._returning: queue.Queue[str | None] = queue.Queue()
        self._returner = threading.Thread(target=self._bring_back_all, name="returner", daemon=True)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(grace_s=_GRACE_S if kind is None else 0.0)

    @property
    def orchestrator(self) -> Child:
        """The one orchestrator."""
        return self._orchestrators[0]

    def start(self) -> None:
        """Start everything and wait until it serves. Raises PNodeError with the last lines of whoever did not."""
        self._board.enter("starting the orchestrator and the PNodes")
        orchestrator = self._launch(
            "orchestrator", orchestrator_changes(self._settings, self._plan), self._orchestrators
        )
        self._await(orchestrator, _ORCHESTRATOR_S)
        # The first one compiles the kernels where the cache is cold, which all others would do beside it.
        first, *others = self._plan.nodes
        self._start_nodes([first])
        self._start_nodes(others)
        self._returner.start()

    def _start_nodes(self, names: list[str]) -> None:
        where = self.orchestrator.address
        started = [
            self._launch(name, node_changes(self._settings, self._plan, name, where), self.nodes) for name in names
        ]
        for child in started:
            self._await(child, self._settings.node.start_s)

    def bring_back(self, name: str) -> None:
        """Start a node again that was killed; returns at once."""
        self._returning.put(name)

    def _bring_back_all(self) -> None:
        while (name := self._returning.get()) is not None and not self._ending:
            dead = [child for child in self.nodes if child.name == name]
            try:
                self._start_nodes([name])
            except PNodeError as error:
                if not self._ending:
                    self._board.note(f"{name} did not come back: {error.message}")
            for child in dead:
                self.nodes.remove(child)

    def count(self, kind: str) -> None:
        """A fault has befallen a call of some process."""
        with self._board.lock:
            self.faults[kind] += 1

    def _heard(self, line: dict[str, Any]) -> None:
        if line.get("event") == "fault":
            self.count(str(line["kind"]))

    def _launch(self, name: str, changes: dict[str, Any], among: list[Child]) -> Child:
        config = write_config(self._settings, changes, self._plan.path("config", f"{name}.yaml"))
        self._board.starting(name)
        child = Child(
            name,
            (*PNODE, "--config", str(config)),
            self._plan.path("logs", f"{name}.log"),
            on_line=self._heard,
            on_end=lambda code: self._board.ended(name, code, expected=self._ending),
        )
        among.append(child)
        self._board.started(child)
        return child

    def _await(self, child: Child, deadline_s: float) -> None:
        child.wait_serving(deadline_s, self._board.busy)
        self._board.serves(child)

    def end(self, *, grace_s: float) -> None:
        """End the nodes, then the orchestrator. Safe to call twice."""
        self._ending = True
        self._returning.put(None)
        end_all(self.nodes, grace_s)
        if self._returner.is_alive():
            self._returner.join(_GRACE_S)
            end_all(self.nodes, 0.0)
        end_all(self._orchestrators, grace_s)


def run_reference(settings: Settings, plan: Plan, board: Board) -> dict[str, Any]:
    """Train the job in one process of its own; returns its last line. Raises PNodeError where there was none."""
    config = write_config(settings, {}, plan.path("config", "reference.yaml"))
    last: dict[str, Any] = {}

    def heard(line: dict[str, Any]) -> None:
        board.reference_line(line)
        if line.get("event") == "done":
            last.update(line)

    log = plan.path("logs", "reference.log")
    child = Child("reference", (*_REFERENCE, "--config", str(config)), log, on_line=heard)
    try:
        child.wait_end(settings.node.start_s + settings.job.steps * settings.job.wall_s)
    finally:
        child.kill()
    if child.exit_code != os.EX_OK or not last:
        how = described(child.exit_code) if child.exit_code is not None else "no end"
        raise PNodeError(f"the reference ended with {how} before it was done; its last lines:\n{child.tail(12)}")
    return last
