"""What a job is: a model, its data as a pure function of the step, and how to train it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pnode.client.batch import Batch
from pnode.client.cut import Plan, cut
from pnode.client.model import Model
from pnode.v1 import spec_pb2


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that decides the final digest, and how the model is cut and fed, which does not.

    batch: the whole batch of a step, a pure function of it. test: rows that are never trained on.
    """

    name: str
    model: Model
    optimizer: spec_pb2.Optimizer
    seed: int
    profile: str
    steps: int
    batch: Callable[[int], Batch]
    test: Batch

    stages: int
    num_microbatches: int
    limits: spec_pb2.Limits
    checkpoint: spec_pb2.CheckpointPolicy

    def cut(
        self, run: str, *, stages: int | None = None, boundaries: list[int] | None = None
    ) -> list[spec_pb2.VNodeSpec]:
        """The VNodes of a run of this job, in model order."""
        plan = Plan(
            run=run,
            seed=self.seed,
            optimizer=self.optimizer,
            limits=self.limits,
            profile=self.profile,
            checkpoint=self.checkpoint,
            window=self.num_microbatches,
        )
        return cut(self.model, plan, stages=self.stages if stages is None else stages, boundaries=boundaries)
