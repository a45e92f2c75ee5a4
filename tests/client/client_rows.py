"""Rows to train on, for every test of the client."""

from __future__ import annotations

import numpy as np

from pnode.client.batch import Batch, from_array


def make_batch(step: int, num_rows: int = 8) -> Batch:
    """Rows that depend on the step alone."""
    rng = np.random.default_rng(step)
    tokens = rng.standard_normal((num_rows, 3, 4)).astype(np.float32)
    labels = rng.integers(0, 5, num_rows)
    return Batch((from_array("tokens", tokens),), (from_array("label", labels),))
