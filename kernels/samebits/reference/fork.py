"""The backward of fork."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samebits.reference.arrays import Floats


def fork_backward(grads: Sequence[Floats]) -> Floats:
    """Ascending sum over the consumers, from +0."""
    total = np.zeros(grads[0].shape, np.float32)
    for grad in grads:
        with np.errstate(all="ignore"):
            total = total + grad
    return total
