"""Cases of attention beyond its plain form: grouped queries, masks, causal rows and keys of unequal number; rotary."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from samebits.attention import attention
from samebits.multihead_attention import multihead_attention
from samebits.rotary import rotary
from samebits.selftest._registry import both, covers
from samebits.selftest._values import Values


def _operands(values: Values, shared: int, rows: int, keys: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return values(2, 2 * shared, rows, width), values(2, 2, keys, width), values(2, 2, keys, width)


@covers("attention.grouped")
def _grouped(values: Values) -> Iterator[Tensor]:
    for shared, rows, keys, width in ((3, 21, 21, 20), (2, 18, 37, 16), (2, 37, 18, 3)):
        for causal in (False, True):
            yield from both(values, partial(attention, causal=causal), *_operands(values, shared, rows, keys, width))


@covers("attention.masked")
def _masked(values: Values) -> Iterator[Tensor]:
    for rows, keys in ((21, 35), (5, 3)):
        for axes in ((2, 1, 1, keys), (1, 4, rows, keys)):
            operator = partial(attention, mask=values(*axes) > 0, causal=rows == keys)
            yield from both(values, operator, *_operands(values, 2, rows, keys, 20))


@covers("rotary")
def _rotary(values: Values) -> Iterator[Tensor]:
    for positions, base, interleaved in ((0, 10000.0, False), (1 << 20, 500000.0, True), (250, 1.5, False)):
        operator = partial(rotary, positions=positions, base=base, interleaved=interleaved)
        yield from both(values, operator, values(2, 3, 19, 34))
    parameters = (values(40, 20), values(40), values(20, 20), values(20))
    operator = partial(multihead_attention, num_heads=2, num_kv_heads=1, rotary_base=10000.0, causal=True)
    yield from both(values, operator, values(3, 19, 20), *parameters, chained=True)
