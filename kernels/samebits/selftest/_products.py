"""Cases of the operators that are matrix products: edges of every tile, blocks of k, work enough for two threads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from samebits.attention import attention
from samebits.matmul import linear, matmul
from samebits.multihead_attention import multihead_attention
from samebits.selftest._registry import both, covers
from samebits.selftest._values import Values

SIZES = ((1, 37, 97), (3, 300, 17), (7, 64, 49), (13, 5, 50), (65, 1, 33), (97, 263, 131), (0, 3, 4), (3, 0, 4))


@covers("matmul")
def _matmul(values: Values) -> Iterator[Tensor]:
    for m, k, n in SIZES:
        yield from both(values, matmul, values(m, k), values(k, n), chained=True)
    yield from both(values, matmul, values(33, 9).mT, values(21, 33).mT)
    yield from both(values, matmul, values(2, 3, 9, 21), values(2, 3, 21, 17))
    yield from both(values, matmul, values(3, 5, 21), values(21, 17), chained=True)
    yield from both(values, matmul, values(9, 33, lowest=-80), values(33, 19, lowest=-70))
    yield from both(values, matmul, values(9, 33, lowest=62), values(33, 19, lowest=62))
    yield from both(values, matmul, values.strewn(11, 20), values.strewn(20, 19))


@covers("linear")
def _linear(values: Values) -> Iterator[Tensor]:
    for m, k, n in SIZES:
        yield from both(values, linear, values(m, k), values(n, k), values(n), chained=True)
    yield from both(values, linear, values(2, 5, 21), values(17, 21))
    yield from both(values, linear, values.strewn(11, 20), values.strewn(19, 20), values.strewn(19))


@covers("attention")
def _attention(values: Values) -> Iterator[Tensor]:
    for rows, keys, width in ((21, 21, 20), (1, 5, 1), (18, 67, 16), (5, 0, 3), (49, 33, 8)):
        yield from both(values, attention, *_heads(values, rows, keys, width))
    for rows, width in ((1, 3), (50, 20), (17, 16)):
        yield from both(values, _causal, *_heads(values, rows, rows, width))
    yield from both(values, attention, *(values.strewn(1, 2, 7, 5) for _ in range(3)))


def _heads(values: Values, rows: int, keys: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return values(2, 3, rows, width), values(2, 3, keys, width), values(2, 3, keys, width)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, causal=True)


@covers("multihead_attention")
def _multihead_attention(values: Values) -> Iterator[Tensor]:
    for causal in (False, True):
        parameters = (values(60, 20), values(60), values(20, 20), values(20))

        operator = partial(multihead_attention, num_heads=4, causal=causal)
        yield from both(values, operator, values(3, 19, 20), *parameters, chained=True)
