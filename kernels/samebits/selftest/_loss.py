"""Cases of the losses, and of the chains that carry them from microbatch to microbatch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from samebits.cross_entropy import cross_entropy, row_sum
from samebits.mse_loss import mse_loss
from samebits.selftest._registry import both, covers
from samebits.selftest._values import Values


@covers("cross_entropy")
def _cross_entropy(values: Values) -> Iterator[Tensor]:
    for rows, classes in ((1, 1), (7, 33), (130, 131)):
        target = values.integers(classes, rows)
        yield from both(values, lambda x, target=target: cross_entropy(x, target), values(rows, classes))
        yield from both(values, lambda x, target=target: cross_entropy(x, target, "none"), values(rows, classes))
    target = values.integers(5, 40)
    yield from both(values, lambda x: cross_entropy(x, target, count=77), values.strewn(40, 5))


@covers("mse_loss")
def _mse_loss(values: Values) -> Iterator[Tensor]:
    for reduction in ("mean", "sum", "none"):
        yield from both(values, lambda x, y, how=reduction: mse_loss(x, y, how), values(33, 131), values(33, 131))
    yield from both(values, lambda x, y: mse_loss(x, y, count=77), values.strewn(40, 5), values(40, 5))


@covers("row_sum")
def _row_sum(values: Values) -> Iterator[Tensor]:
    yield row_sum(values(513), values())
    yield row_sum(values(33), 0.5)
