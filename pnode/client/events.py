"""What a driver tells of its run while it works. Times are the driver's clock, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """The run does not serve yet, or not any more; `why` is the orchestrator's word for it."""

    why: str


@dataclass(frozen=True)
class Serving:
    """The run serves. `places`: for each VNode in model order its id, its node's UUID and its address."""

    generation: int
    version: int
    places: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class StepStarted:
    """The microbatches of a step are on their way."""

    step: int
    generation: int


@dataclass(frozen=True)
class StepDone:
    """A step was applied everywhere. `loss` is the mean over the batch; None where its owner gave none."""

    step: int
    loss: float | None
    generation: int
    seconds: float


@dataclass(frozen=True)
class Interrupted:
    """A call failed in a way that recovery mends."""

    generation: int
    reason: str
    message: str


@dataclass(frozen=True)
class Checkpointed:
    """A run manifest was committed."""

    version: int
    manifest_sha256: str


@dataclass(frozen=True)
class CheckpointMissed:
    """A checkpoint on the way failed; the run goes on without it."""

    version: int
    message: str


Event = Waiting | Serving | StepStarted | StepDone | Interrupted | Checkpointed | CheckpointMissed
