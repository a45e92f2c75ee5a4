"""The learning rate of a step: a pure function, binary64 with + - * / only, the same on every host."""

from __future__ import annotations

from pnode.v1 import spec_pb2


def learning_rate(optimizer: spec_pb2.Optimizer, step: int) -> float:
    """lr of step 0, 1, ..: linear warm-up over warmup_steps, then linear to zero at total_steps (0: constant).

    Warm-up: lr * (step + 1) / warmup_steps, so that the first step is not wasted and step warmup_steps - 1 has lr
    itself. Decay: lr * (total_steps - step) / (total_steps - warmup_steps), and 0 from total_steps on. Multiplied
    first, then divided.
    """
    base: float = getattr(optimizer, str(optimizer.WhichOneof("kind"))).lr
    warmup, total = optimizer.schedule.warmup_steps, optimizer.schedule.total_steps
    if step < warmup:
        return base * float(step + 1) / float(warmup)
    if total == 0:
        return base
    if step >= total:
        return 0.0
    return base * float(total - step) / float(total - warmup)
