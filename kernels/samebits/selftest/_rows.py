"""Cases of the operators along rows: fewer rows than a vector has lanes, more, panels begun and full."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from samebits.layer_norm import layer_norm
from samebits.mean_pool import mean_pool
from samebits.position_embedding import position_embedding
from samebits.selftest._registry import both, covers
from samebits.selftest._values import Values
from samebits.softmax import softmax

SIZES = ((1, 1), (7, 33), (37, 129), (130, 150), (5, 300), (0, 3))


@covers("softmax")
def _softmax(values: Values) -> Iterator[Tensor]:
    for rows, columns in SIZES:
        yield from both(values, softmax, values(rows, columns))
    yield from both(values, softmax, values(2, 3, 19))
    yield from both(values, softmax, values(19, 21, lowest=3).mT)
    yield from both(values, softmax, values.strewn(40, 5))


@covers("layer_norm")
def _layer_norm(values: Values) -> Iterator[Tensor]:
    for rows, columns in SIZES:
        yield from both(values, _normed, values(rows, columns), values(columns), values(columns), chained=True)
    yield from both(values, _normed, values(2, 3, 19, lowest=-70), values(19), values(19))
    yield from both(values, _normed, values.strewn(40, 5), values(5), values(5))


def _normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return layer_norm(x, weight, bias, 1e-5)


@covers("mean_pool")
def _mean_pool(values: Values) -> Iterator[Tensor]:
    yield from both(values, mean_pool, values(3, 17, 331))
    yield from both(values, mean_pool, values.strewn(5, 3, 11))


@covers("position_embedding")
def _position_embedding(values: Values) -> Iterator[Tensor]:
    yield from both(values, position_embedding, values(9, 17, 113), values(17, 113), chained=True)
    yield from both(values, position_embedding, values.strewn(5, 3, 11), values.strewn(3, 11))
