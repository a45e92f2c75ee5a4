"""Learning rates as pure functions of the step, the same binary64 on every host.

A schedule is called with a step, 0, 1, .., and gives the factor of the initial rate: `+ - * /` and square-and-multiply
in binary64, cosines and broken powers rounded once by mpmath. Use it with `set_lr` before every step, with any
optimizer, or hand it to `torch.optim.lr_scheduler.LambdaLR`, which multiplies likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from samebits._check import require
from samebits._rounded import cos_pi, rational_power
from samebits.optim._scalars import checked, power

Schedule = Callable[[int], float]


def _at_least_one(operator: str, **counts: int) -> None:
    for name, count in counts.items():
        whole = isinstance(count, int) and not isinstance(count, bool) and count >= 1
        require(whole, operator, f"{name} must be an int of at least 1, not {count!r}")


@dataclass(frozen=True)
class Constant:
    """1, or another factor, at every step."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        checked("Constant", 0.0, float("inf"), factor=self.factor)

    def __call__(self, step: int) -> float:
        return self.factor


@dataclass(frozen=True)
class WarmUp:
    """(step + 1) / steps for the first `steps` steps; then `then`, whose own steps count from there."""

    steps: int
    then: Schedule = Constant()

    def __post_init__(self) -> None:
        _at_least_one("WarmUp", steps=self.steps)

    def __call__(self, step: int) -> float:
        return float(step + 1) / float(self.steps) if step < self.steps else self.then(step - self.steps)


@dataclass(frozen=True)
class Cosine:
    """From 1 down to `end` over `steps` steps, then `end`: end + (1 - end) * ((1 + cos(pi * step / steps)) * 0.5)."""

    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _at_least_one("Cosine", steps=self.steps)
        checked("Cosine", 0.0, float("inf"), end=self.end)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.end + (1.0 - self.end) * ((1.0 + cos_pi(step, self.steps)) * 0.5)


@dataclass(frozen=True)
class Polynomial:
    """From 1 down to `end` over `steps` steps, then `end`: end + (1 - end) * ((steps - step) / steps)**exponent.

    A whole exponent is squared and multiplied; the power of any other is rounded once. Exponent 1 is linear decay.
    """

    steps: int
    exponent: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _at_least_one("Polynomial", steps=self.steps)
        checked("Polynomial", 0.0, float("inf"), exponent=self.exponent, end=self.end)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        left = self.steps - step
        if float(self.exponent).is_integer():
            part = power(float(left) / float(self.steps), int(self.exponent))
        else:
            part = rational_power(left, self.steps, self.exponent)
        return self.end + (1.0 - self.end) * part


@dataclass(frozen=True)
class Step:
    """gamma**(step // every)."""

    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _at_least_one("Step", every=self.every)
        checked("Step", 0.0, float("inf"), gamma=self.gamma)

    def __call__(self, step: int) -> float:
        return power(self.gamma, step // self.every)


@dataclass(frozen=True)
class MultiStep:
    """gamma**n, where n counts the milestones that are not above the step."""

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        _at_least_one("MultiStep", **{f"milestone {i}": number for i, number in enumerate(self.milestones)})
        checked("MultiStep", 0.0, float("inf"), gamma=self.gamma)

    def __call__(self, step: int) -> float:
        return power(self.gamma, len([number for number in self.milestones if number <= step]))


def set_lr(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Set every group's lr to its initial lr * schedule(step), one product in binary64.

    The initial lr is what the group had when first seen here, kept in it as "initial_lr", where torch's own schedulers
    keep it too; so it travels with state_dict(). ValueError: a negative step.
    """
    require(step >= 0, "set_lr", f"step must be at least 0, not {step}")
    factor = schedule(step)
    for group in optimizer.param_groups:
        group["lr"] = float(group.setdefault("initial_lr", group["lr"])) * factor
