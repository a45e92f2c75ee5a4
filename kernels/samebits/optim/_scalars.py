"""An optimizer's numbers: checked, computed in binary64 by + - * / and sqrt, rounded to binary32 once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from samebits._check import require


def power(base: float, exponent: int) -> float:
    """base**exponent in binary64, by left-to-right square-and-multiply: a host's own power may round otherwise."""
    result = 1.0
    for bit in bin(exponent)[2:]:
        result = result * result
        if bit == "1":
            result = result * base
    return result


def checked(operator: str, low: float, high: float, **numbers: float) -> None:
    """Raise ValueError unless each number is finite and low <= number < high."""
    for name, number in numbers.items():
        fits = math.isfinite(number) and low <= number < high
        require(fits, operator, f"{name} must be finite, at least {low:g} and below {high:g}, not {number}")


def adam_scalars(group: dict[str, Any], step: int) -> list[np.float32]:
    """The seven scalars of step number `step` that Adam and AdamW share, in their kernels' order."""
    beta1, beta2 = group["betas"]
    root = math.sqrt(1.0 - power(beta2, step))
    minus_size = -float(group["lr"]) / (1.0 - power(beta1, step))
    exact = (beta1, 1.0 - beta1, beta2, 1.0 - beta2, root, group["eps"], minus_size)
    return [np.float32(number) for number in exact]
