"""Cases of the operators along rows: fewer rows than a vector has lanes, more, panels begun and full."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from samebits import reductions
from samebits.layer_norm import layer_norm
from samebits.mean_pool import mean_pool
from samebits.position_embedding import position_embedding
from samebits.rms_norm import rms_norm
from samebits.selftest._registry import both, covers
from samebits.selftest._values import Values
from samebits.softmax import log_softmax, softmax

SIZES = ((1, 1), (7, 33), (37, 129), (130, 150), (5, 300), (0, 3))


@covers("softmax")
def _softmax(values: Values) -> Iterator[Tensor]:
    for rows, columns in SIZES:
        yield from both(values, softmax, values(rows, columns))
    yield from both(values, softmax, values(2, 3, 19))
    yield from both(values, softmax, values(19, 21, lowest=3).mT)
    yield from both(values, softmax, values.strewn(40, 5))


@covers("log_softmax")
def _log_softmax(values: Values) -> Iterator[Tensor]:
    for rows, columns in SIZES:
        yield from both(values, log_softmax, values(rows, columns))
    yield from both(values, lambda x: log_softmax(x, 1), values(3, 17, 19))
    yield from both(values, log_softmax, values.strewn(40, 5))


@covers("rms_norm")
def _rms_norm(values: Values) -> Iterator[Tensor]:
    for rows, columns in SIZES:
        yield from both(values, _scaled, values(rows, columns), values(columns), chained=True)
    yield from both(values, _scaled, values.strewn(40, 5), values(5))


def _scaled(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight, 1e-6)


@covers("sum")
def _sum(values: Values) -> Iterator[Tensor]:
    for dim in (None, 0, 1, 2, (0, 2)):
        yield from both(values, lambda x, dim=dim: reductions.sum(x, dim), values(5, 33, 131))
    yield from both(values, lambda x: reductions.sum(x, 0, keepdim=True), values.strewn(40, 5))


@covers("mean")
def _mean(values: Values) -> Iterator[Tensor]:
    for dim in (None, 0, 1, 2, (0, 2)):
        yield from both(values, lambda x, dim=dim: reductions.mean(x, dim), values(5, 33, 131))
    yield from both(values, lambda x: reductions.mean(x, 0, keepdim=True), values.strewn(40, 5))


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
