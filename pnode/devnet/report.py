"""What a devnet run leaves behind: report.json and loss.png in its folder, and the last line on stdout."""

from __future__ import annotations

import itertools
import json
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from pnode.config import Settings
from pnode.devnet.board import Board
from pnode.devnet.killer import Killed
from pnode.devnet.plan import Plan
from pnode.jobs.job import Job

_PACKAGES = ("pnode", "torch", "numba", "numpy", "grpcio", "protobuf")


def summary(plan: Plan, job: Job, board: Board, kills: list[Killed], found: dict[str, Any]) -> dict[str, Any]:
    """The one line for machines. `found`: digests, accuracy, generation."""
    return {
        "digest": found["digest"],
        "reference_digest": found["reference_digest"],
        "bitwise_equal": found["bitwise_equal"],
        "test_accuracy": round(found["test_accuracy"], 6),
        "kills": len(kills),
        "seed": plan.seed,
        "faults": dict(sorted(found["faults"].items())),
        "steps": job.steps,
        "seconds": round(board.seconds, 2),
        "job": job.name,
        "parameters": job.model.num_parameters,
        "stages": job.stages,
        "microbatches": job.num_microbatches,
        "generation": found["generation"],
        "run": plan.run,
        "folder": str(plan.folder),
    }


def write_report(
    path: Path,
    *,
    settings: Settings,
    plan: Plan,
    board: Board,
    kills: list[Killed],
    line: dict[str, Any],
    seconds: dict[str, float],
    reference: dict[str, Any] | None,
) -> None:
    """Everything about the run as JSON."""
    first = board.run.points[0][0] if board.run.points else 0.0
    report = line | {
        "numerics": settings.job.profile,
        "seed_of_kills": plan.seed,
        "planned_kills": [asdict(kill) for kill in plan.kills],
        "kill_moments": [asdict(kill) for kill in kills],
        "recovery_seconds": board.recovery_s,
        "differing_replays": board.num_differing_replays,
        "phase_seconds": seconds,
        "losses": [board.run.losses[step] for step in sorted(board.run.losses)],
        "steps_taken": [
            {"at_s": round(at_s - first, 4), "step": step, "loss": loss} for at_s, step, loss in board.run.points
        ],
        "reference": reference,
        "moments": [asdict(moment) for moment in board.moments],
        "nodes": plan.nodes,
        "settings": settings.model_dump(mode="json", exclude={"orchestrator": {"enrolment"}}),
        "versions": {name: metadata.version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "machine": platform.machine(),
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def draw_losses(path: Path, board: Board, kills: list[Killed], title: str) -> None:
    """Both loss curves over the steps as PNG, each kill and what was replayed after it marked."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, and only the end needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(9, 5), dpi=120)
    axes.plot(*_curve(board.reference.losses), color="#f0b050", linewidth=4, alpha=0.7, label="one process, no network")
    axes.plot(*_curve(board.run.losses), color="#2060a0", linewidth=1.2, label="PNodes")
    for number, kill in enumerate(kills):
        axes.axvline(kill.step, color="#c03030", linestyle="--", label=f"SIGKILL to {kill.node}, step {kill.step}")
        resumed = _resumed_from(board, kill)
        if resumed is not None and resumed < kill.step:
            label = "replayed from the last checkpoint" if number == 0 else None
            axes.axvspan(resumed, kill.step, color="#c03030", alpha=0.12, label=label)
    axes.set(xlabel="step", ylabel="loss", title=title, yscale="log")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _curve(losses: dict[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(losses)
    return steps, [losses[step] for step in steps]


def _resumed_from(board: Board, kill: Killed) -> int | None:
    """The step at which training went on after a kill: the first one that went back."""
    steps = [step for _, step, _ in board.run.points]
    for before, after in itertools.pairwise(steps):
        if before >= kill.step - 1 and after <= before:
            return after
    return None
