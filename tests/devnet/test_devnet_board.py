"""The board, its views and the report, from events alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from pnode.client import events
from pnode.config import load
from pnode.devnet import report
from pnode.devnet.board import Board
from pnode.devnet.child import Child
from pnode.devnet.killer import Killed, Killer
from pnode.devnet.plan import Kill, make_plan
from pnode.devnet.view import line, render, shown
from pnode.jobs.catalog import make_job

PLACES = (("stage1", "uuid-1", "127.0.0.1:1"), ("stage2", "uuid-2", "127.0.0.1:2"))


class StandingChild:
    """What board and killer see of a child process."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address, self.pid = name, address, 1000 + len(address)
        self.exit_code: int | None = None

    def kill(self) -> None:
        self.exit_code = -9

    def tail(self, num_lines: int) -> str:
        return f"12:00:00 info zygote: compiling {num_lines}"


def children() -> list[Child]:
    return as_children([StandingChild("node-1", "127.0.0.1:1"), StandingChild("node-2", "127.0.0.1:2")])


@pytest.fixture
def board() -> Board:
    """Of a run that lost a node at step 3, went back to step 2, and was compared."""
    made = Board("digits", steps=4)
    for child in children():
        made.starting(child.name)
        made.started(child)
        made.busy(child)
        made.serves(child)
    made.event(events.Waiting("no node has joined"))
    made.event(events.Serving(1, 0, PLACES))
    for step in range(3):
        made.event(events.StepDone(step, 2.0 - step, 1, 0.1))
    made.event(events.Checkpointed(2, "ab" * 32))
    made.event(events.CheckpointMissed(3, "slow"))
    made.killed(Killed("node-2", 1, 3, 1, 0.01))
    made.ended("node-2", -9, expected=False)
    made.event(events.Interrupted(1, "PEER_UNAVAILABLE", "gone"))
    made.event(events.Serving(1, 0, PLACES))
    assert not made.recovery_s, "the orchestrator has not seen it yet"
    made.event(events.Serving(2, 2, (PLACES[0], ("stage2", "uuid-1", "127.0.0.1:1"))))
    for step in (2, 3):
        made.event(events.StepDone(step, 2.0 - step, 2, 0.1))
        made.reference_line({"event": "step", "step": step, "loss": 2.0 - step})
    return made


def test_the_board_knows_who_hosts_what_and_what_happened(board: Board) -> None:
    assert board.rows["node-1"].vnodes == ("stage1", "stage2")
    assert board.rows["node-2"].vnodes == ()
    assert board.rows["node-2"].state == "killed at step 3"
    assert board.run.losses == {0: 2.0, 1: 1.0, 2: 0.0, 3: -1.0}
    assert [step for _, step, _ in board.run.points] == [0, 1, 2, 2, 3]
    assert board.num_differing_replays == 0
    assert len(board.recovery_s) == 1
    told = "\n".join(moment.text for moment in board.moments)
    for words in (
        "node-1 serves on 127.0.0.1:1",
        "waiting: no node has joined",
        "generation 1: stage1 on node-1, stage2 on node-2; training from the beginning",
        "SIGKILL to node-2 (pid 1) during step 3",
        "generation 1 again: stage1 on node-1, stage2 on node-2",
        "interrupted: PEER_UNAVAILABLE: gone",
        "generation 2: stage1 on node-1, stage2 on node-1; training from step 2",
        "checkpoint at version 2: abababababab",
        "no checkpoint at version 3: slow",
    ):
        assert words in told
    assert told.count("from the beginning") == 1
    assert "ended by itself" not in told, "it was killed"


def test_a_replay_with_another_loss_does_not_go_unseen(board: Board) -> None:
    board.event(events.StepDone(3, 7.0, 3, 0.1))
    assert board.num_differing_replays == 1


def test_a_child_that_ends_by_itself_is_told(board: Board) -> None:
    board.ended("node-1", 1, expected=False)
    assert board.moments[-1].text == "node-1 ended by itself: exit code 1"
    assert board.rows["node-1"].state == "ended (exit code 1)"


def test_the_live_board_can_be_drawn_at_any_time(board: Board) -> None:
    for each in (Board("empty", steps=1), board):
        console = Console(width=100, record=True, file=None, quiet=False, force_terminal=True)
        with console.capture() as captured:
            console.print(render(each))
        assert each.title in captured.get()
    for words in ("node-1", "stage1 stage2", "killed at step 3", "4/4"):
        assert words in captured.get()


def test_without_a_terminal_there_are_plain_lines_on_stderr_alone(
    board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown(board):
        board.note("and now the end")
    out, err = capsys.readouterr()
    assert out == ""
    assert line(board.moments[-1]) in err
    assert "training: step 4 of 4, loss -1.0000" in err
    assert "\x1b" not in err


def test_the_killer_kills_who_hosts_something_at_the_planned_step() -> None:
    killed: list[Killed] = []
    nodes = [*children(), *as_children([StandingChild("node-3", "127.0.0.1:3")])]
    back: list[str] = []
    plan = [Kill(2, 0.0, 0.99), Kill(5, 0.5, 0.0, returns=True)]
    killer = Killer(plan, lambda: nodes, killed.append, back.append)
    killer.event(events.Serving(1, 0, PLACES))
    for step in range(4):
        killer.event(events.StepStarted(step, 1))
        killer.event(events.StepDone(step, 1.0, 1, 0.001))
        killer.close()
    assert [(each.node, each.step) for each in killed] == [("node-2", 2)], "node-3 hosts nothing"
    for step in (4, 5):
        killer.event(events.StepStarted(step, 2))
    killer.close()
    assert [each.node for each in killer.done] == ["node-2", "node-1"], "the dead are not killed again"
    assert killer.done[1].generation == 2
    assert back == ["node-1"]


def as_children(nodes: Sequence[StandingChild]) -> list[Child]:
    """What is asked of a child, they can do."""
    return cast(list[Child], list(nodes))


def test_the_report_and_the_curve_are_written(board: Board, tmp_path: Path) -> None:
    settings = load(["role=devnet", f"devnet.folder={tmp_path}", "job.steps=4", "devnet.seed=3"])
    job, plan = make_job(settings.job), make_plan(settings)
    kills = [Killed("node-2", 1, 3, 1, 0.01)]
    found = {"digest": "a", "reference_digest": "a", "bitwise_equal": True, "test_accuracy": 0.98, "generation": 2}
    found |= {"faults": {"drop": 3}}
    summary = report.summary(plan, job, board, kills, found)
    for key in ("digest", "reference_digest", "bitwise_equal", "test_accuracy", "kills", "steps", "seconds"):
        assert key in summary
    assert (summary["kills"], summary["steps"], summary["bitwise_equal"]) == (1, 4, True)
    report.write_report(
        plan.path("report.json"),
        settings=settings,
        plan=plan,
        board=board,
        kills=kills,
        line=summary,
        seconds={"train": 1.0},
        reference={"digest": "a"},
    )
    written = json.loads((plan.folder / "report.json").read_text())
    assert written["losses"] == [2.0, 1.0, 0.0, -1.0]
    assert written["kill_moments"][0]["node"] == "node-2"
    assert written["seed_of_kills"] == 3
    assert written["settings"]["job"]["steps"] == 4
    report.draw_losses(plan.path("loss.png"), board, kills, board.title)
    assert (plan.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
