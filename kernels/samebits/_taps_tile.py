"""The register tile of a convolution's kernel gradient, written as LLVM IR.

An accumulator is one tap of one channel of the input; its lanes are channels of the output. They stay in registers
while the places of one image ascend. A tap that is padding at a place leaves its accumulator as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from samebits._compile import intrinsic
from samebits._intrinsics import I32, I64
from samebits._vectors import LANES, ROWS, VECTOR, VECTORS, Vectors

HEIGHTS = (4, 8, 12)  # accumulators: enough for the latency of fma, and no more than 16 registers hold
TAPS = HEIGHTS[-1]
WIDE = 2 if ROWS * VECTORS >= 2 * TAPS else 1  # vectors of output channels that share what is loaded of the input
INTS = ir.PointerType(ir.IntType(64))
INT32S = ir.VectorType(I32, LANES)


class _Operands(NamedTuple):
    """The tile's arguments as LLVM values; see `taps_tile`."""

    source: Any
    row: Any
    column: Any
    offsets: Any
    row_bits: Any
    column_bits: Any
    grad: Any
    grad_step: Any
    rows: Any
    columns: Any
    sums: Any
    sums_step: Any


class _TileWriter:
    """Writes one size of tile."""

    def __init__(self, builder: Any, operands: _Operands, height: int, width: int) -> None:
        self.b, self.o, self.v, self.height, self.width = builder, operands, Vectors(builder), height, width

    def write(self) -> None:
        """The whole tile, from the builder's block to a new one where it leaves the builder."""
        b, v = self.b, self.v
        offsets, source = b.inttoptr(self.o.offsets, INTS), v.pointer(self.o.source)
        origins = [b.gep(source, [b.load(b.gep(offsets, [I64(i)]))]) for i in range(self.height)]
        across = [b.mul(I64(j), self.o.grad_step) for j in range(self.width)]
        ends = [b.mul(I64(j), self.o.sums_step) for j in range(self.width)]
        sums = v.pointer(self.o.sums)
        homes = [v.at(sums, b.add(end, I64(i * LANES))) for i in range(self.height) for end in ends]

        def row(i: Any, sums: list[Any]) -> list[Any]:
            bits, line = self._bits(self.o.row_bits, i), b.mul(i, self.o.row)
            grad = b.gep(v.pointer(self.o.grad), [b.mul(b.mul(i, self.o.columns), I64(LANES))])

            def place(j: Any, sums: list[Any]) -> list[Any]:
                here = b.add(line, b.mul(j, self.o.column))
                present = b.and_(bits, self._bits(self.o.column_bits, j))
                grads = [v.load(v.at(grad, b.add(b.mul(j, I64(LANES)), step))) for step in across]
                return self._place(present, [b.gep(origin, [here]) for origin in origins], grads, sums)

            return self._ascend(self.o.columns, sums, place)

        total = self._ascend(self.o.rows, [v.load(home) for home in homes], row)
        for home, value in zip(homes, total, strict=True):
            v.store(value, home)

    def _bits(self, table: Any, i: Any) -> Any:
        return self.b.load(self.b.gep(self.b.inttoptr(table, INTS), [i]))

    def _ascend(self, count: Any, start: list[Any], step: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """sums = step(k, sums) for k in 0..count, at least once."""
        b = self.b
        before, loop, done = b.block, b.append_basic_block("loop"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        k = b.phi(I64)
        sums = [b.phi(VECTOR) for _ in start]
        new, following = step(k, sums), b.add(k, I64(1))
        last = b.block
        for phi, first, value in zip([k, *sums], [I64(0), *start], [following, *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, last)
        b.cbranch(b.icmp_signed("<", following, count), loop, done)
        b.position_at_end(done)
        return new

    def _place(self, present: Any, sources: list[Any], grads: list[Any], sums: list[Any]) -> list[Any]:
        """sum[i, j] = fma(source[i], grad[j], sum[i, j]) for the taps that are present, almost always all."""
        b, v = self.b, self.v
        plain, masked, joined = (b.append_basic_block(name) for name in ("plain", "masked", "joined"))
        everything = I64((1 << self.height) - 1)
        b.cbranch(b.icmp_signed("==", b.and_(present, everything), everything), plain, masked)
        results = []
        for block in (plain, masked):
            b.position_at_end(block)
            cells = self._chosen(present, sources, grads) if block is masked else self._all(sources, grads)
            results.append([v.fma(*cell, old) for cell, old in zip(cells, sums, strict=True)])
            b.branch(joined)
        b.position_at_end(joined)
        new = [b.phi(VECTOR) for _ in sums]
        for block, values in zip((plain, masked), results, strict=True):
            for phi, value in zip(new, values, strict=True):
                phi.add_incoming(value, block)
        return new

    def _all(self, sources: list[Any], grads: list[Any]) -> list[tuple[Any, Any]]:
        factors = [self.v.spread(self.b.load(x)) for x in sources]
        return [(factor, grad) for factor in factors for grad in grads]

    def _chosen(self, present: Any, sources: list[Any], grads: list[Any]) -> list[tuple[Any, Any]]:
        """The factors where a tap is absent are +0 and -0, which change no sum: -0 is added to it.

        Sources are loaded as integers, for LLVM would else do the products before it knows which block is taken, and
        have no registers left.
        """
        b, v, cells = self.b, self.v, []
        bits, zero = v.spread(b.trunc(present, I32)), ir.Constant(INT32S, [0] * LANES)
        for i, source in enumerate(sources):
            here = b.icmp_signed("!=", b.and_(bits, ir.Constant(INT32S, [1 << i] * LANES)), zero)
            number = v.spread(b.load(b.bitcast(source, ir.PointerType(I32))))
            factor = b.bitcast(b.select(here, number, zero), VECTOR)
            cells += [(factor, b.select(here, grad, ir.Constant(VECTOR, [-0.0] * LANES))) for grad in grads]
        return cells


@intrinsic
def taps_tile(
    context: Any, source: Any, row: Any, column: Any, offsets: Any, row_bits: Any, column_bits: Any, grad: Any,
    grad_step: Any, rows: Any, columns: Any, sums: Any, sums_step: Any, height: Any, width: Any,
) -> Any:  # fmt: skip
    """sums[t] = chain over the places (i, j) of fma(source[i * row + j * column + offsets[t]], grad[i, j], sums[t]).

    Addresses; strides and offsets count floats. grad [rows, columns, LANES] and sums [height, LANES] are vectors, and
    there are `width` <= WIDE of each, grad_step and sums_step apart.
    Tap t takes part in place (i, j) if bit t of row_bits[i] & column_bits[j] (int64) is set; where it is not, the
    source must still be readable. height is one of HEIGHTS, the last if
    width > 1; rows, columns >= 1.
    """

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *operands, height, width = arguments
        after, nowhere = builder.append_basic_block("after"), builder.append_basic_block("nowhere")
        choice = builder.switch(builder.mul(height, width), nowhere)
        for taps, vectors in [*((taps, 1) for taps in HEIGHTS), *((TAPS, vectors) for vectors in range(2, WIDE + 1))]:
            block = builder.append_basic_block(f"taps_{taps}_{vectors}")
            choice.add_case(I64(taps * vectors), block)
            builder.position_at_end(block)
            _TileWriter(builder, _Operands(*operands), taps, vectors).write()
            builder.branch(after)
        builder.position_at_end(nowhere)
        builder.unreachable()
        builder.position_at_end(after)
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 14), generate
