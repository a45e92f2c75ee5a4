"""Cases of bfloat16 storage: the casts, and operators that take bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from samebits import add, gelu, linear, to_bfloat16, to_float32
from samebits.selftest._registry import both, covers
from samebits.selftest._values import Values


@covers("to_bfloat16")
def _to_bfloat16(values: Values) -> Iterator[Tensor]:
    """Ordinary numbers, any bits; and operators on what is stored so, beside parameters in float32 and in bfloat16."""
    yield from both(values, to_bfloat16, values(257, 67, lowest=-16, binades=32))
    yield from both(values, to_bfloat16, values.any_bits(1021))
    yield from both(values, to_bfloat16, values.strewn(31, 3).mT)
    x, weight, bias = to_bfloat16(values(31, 17)), values(13, 17), values(13)
    yield from both(values, linear, x, weight, bias, chained=True)
    yield from both(values, linear, x.detach(), to_bfloat16(weight.detach()), bias.detach(), chained=True)
    yield from both(values, gelu, to_bfloat16(values.strewn(31, 17)))
    yield from both(values, add, to_bfloat16(values.any_bits(1021)), to_bfloat16(values.any_bits(1021)))


@covers("to_float32")
def _to_float32(values: Values) -> Iterator[Tensor]:
    yield from both(values, to_float32, to_bfloat16(values(257, 67, lowest=-16, binades=32)))
    yield from both(values, to_float32, to_bfloat16(values.strewn(31, 3)).mT)
