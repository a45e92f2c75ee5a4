"""How often the largest logit is the right one."""

from __future__ import annotations

import numpy as np

from pnode.client.batch import Batch, to_array
from pnode.vnode.tensors import TensorBytes


def accuracy(logits: TensorBytes, rows: Batch) -> float:
    """The share of rows, 0..1, whose largest logit (the first of equal ones) is that of their target."""
    predicted = np.argmax(to_array(logits), axis=1)
    return float(np.mean(predicted == to_array(rows.targets[0])))
