"""Cases of the table's lookup and of dropout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from samebits import random
from samebits.dropout import dropout
from samebits.embedding import embedding
from samebits.selftest._registry import both, covers
from samebits.selftest._values import Values


@covers("embedding")
def _embedding(values: Values) -> Iterator[Tensor]:
    indices, padded = values.integers(37, 9, 53), values.integers(5, 17)
    yield from both(values, lambda weight: embedding(indices, weight), values(37, 113), chained=True)
    yield from both(values, lambda weight: embedding(padded, weight, padding_idx=-2), values.strewn(5, 3), chained=True)


@covers("dropout")
def _dropout(values: Values) -> Iterator[Tensor]:
    place: dict[str, Any] = {"seed": 7, "site": random.site("selftest"), "step": 3, "sample": 11}
    for p in (0.1, 0.5):
        yield from both(values, lambda x, p=p: dropout(x, p, **place), values(17, 5, 113))
    yield from both(values, lambda x: dropout(x, 0.25, **place), values.strewn(5, 19))
