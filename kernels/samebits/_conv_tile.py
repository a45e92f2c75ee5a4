"""The register tile of a convolution, written as LLVM IR.

A tile is `rows` x `vectors` accumulators: a row is a channel of the result, a lane is a place in its plane. They stay
in registers while the channels of the source and the taps of the kernel ascend. A tap that is padding for some lanes
leaves their accumulators as they are, through a mask, for it is absent from their chains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from samebits._compile import intrinsic
from samebits._intrinsics import I64
from samebits._planes import ENTRY
from samebits._vectors import LANES, MASK, ROWS, VECTOR, VECTORS, Vectors

BITS = ir.IntType(LANES)


class _Operands(NamedTuple):
    """The tile's arguments as LLVM values; see `conv_tile`."""

    source: Any
    channel: Any
    weight: Any
    w_row: Any
    w_channel: Any
    table: Any
    taps: Any
    channels: Any
    bias: Any
    c: Any
    c_row: Any
    rows: Any
    vectors: Any
    lanes: Any


class _TileWriter:
    """Writes one size of tile."""

    def __init__(self, builder: Any, operands: _Operands, rows: int, vectors: int) -> None:
        self.b, self.o, self.v = builder, operands, Vectors(builder)
        self.rows, self.vectors = rows, vectors
        self.cells = [(i, j) for i in range(rows) for j in range(vectors)]
        self.table = builder.inttoptr(operands.table, ir.PointerType(ir.IntType(64)))

    def write(self) -> None:
        """The whole tile, from the builder's block to a new one where it leaves the builder."""
        total = self._ascend(self.o.channels, [self.v.zero for _ in self.cells], self._channel)
        mask = self.v.first_lanes(self.o.lanes)
        bias, c = self.v.pointer(self.o.bias), self.v.pointer(self.o.c)
        for (i, j), value in zip(self.cells, total, strict=True):
            addend = self.v.spread(self.b.load(self.b.gep(bias, [I64(i)])))
            place = self.v.at(c, self.b.add(self.b.mul(I64(i), self.o.c_row), I64(j * LANES)))
            self.v.store(self.b.fadd(value, addend), place, mask if j == self.vectors - 1 else None)

    def _ascend(self, count: Any, start: list[Any], step: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """accumulators = step(k, accumulators) for k in 0..count, which may be 0."""
        b = self.b
        before, head = b.block, b.append_basic_block("head")
        body, done = b.append_basic_block("body"), b.append_basic_block("done")
        b.branch(head)
        b.position_at_end(head)
        k = b.phi(I64)
        accumulators = [b.phi(VECTOR) for _ in start]
        b.cbranch(b.icmp_signed("<", k, count), body, done)
        b.position_at_end(body)
        new = step(k, accumulators)
        last = b.block
        for phi, first, value in zip([k, *accumulators], [I64(0), *start], [b.add(k, I64(1)), *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, last)
        b.branch(head)
        b.position_at_end(done)
        return accumulators

    def _channel(self, channel: Any, accumulators: list[Any]) -> list[Any]:
        """All taps of one channel of the source."""
        source = self.b.gep(self.v.pointer(self.o.source), [self.b.mul(channel, self.o.channel)])
        weight = self.b.gep(self.v.pointer(self.o.weight), [self.b.mul(channel, self.o.w_channel)])
        return self._ascend(self.o.taps, accumulators, lambda tap, acc: self._tap(tap, source, weight, acc))

    def _tap(self, tap: Any, source: Any, weight: Any, accumulators: list[Any]) -> list[Any]:
        """One tap, with masks only where some lane lacks it."""
        b = self.b
        offset, number, full, *masks = (self._entry(tap, i) for i in range(3 + self.vectors))
        plain, masked, joined = (b.append_basic_block(name) for name in ("plain", "masked", "joined"))
        source, weight = b.gep(source, [offset]), b.gep(weight, [number])
        b.cbranch(b.icmp_signed("!=", full, I64(0)), plain, masked)
        results = []
        for block in (plain, masked):
            b.position_at_end(block)
            lanes = [None if block is plain else b.bitcast(b.trunc(bits, BITS), MASK) for bits in masks]
            results.append(self._multiply(source, weight, lanes, accumulators))
            b.branch(joined)
        b.position_at_end(joined)
        new = [b.phi(VECTOR) for _ in accumulators]
        for block, values in zip((plain, masked), results, strict=True):
            for phi, value in zip(new, values, strict=True):
                phi.add_incoming(value, block)
        return new

    def _entry(self, tap: Any, i: int) -> Any:
        return self.b.load(self.b.gep(self.table, [self.b.add(self.b.mul(tap, I64(ENTRY)), I64(i))]))

    def _multiply(self, source: Any, weight: Any, masks: list[Any], accumulators: list[Any]) -> list[Any]:
        """accumulator[i, j] = fma(weight[i], source[j], accumulator[i, j]) where the mask says so."""
        b, v, new = self.b, self.v, []
        across = [v.load(v.at(source, I64(j * LANES)), masks[j]) for j in range(self.vectors)]
        for i in range(self.rows):
            factor = v.spread(b.load(b.gep(weight, [b.mul(I64(i), self.o.w_row)])))
            for j in range(self.vectors):
                old = accumulators[i * self.vectors + j]
                value = v.fma(factor, across[j], old)
                new.append(value if masks[j] is None else b.select(masks[j], value, old))
        return new


@intrinsic
def conv_tile(
    context: Any, source: Any, channel: Any, weight: Any, w_row: Any, w_channel: Any, table: Any, taps: Any,
    channels: Any, bias: Any, c: Any, c_row: Any, rows: Any, vectors: Any, lanes: Any,
) -> Any:  # fmt: skip
    """c[rows, width] = chain over channels, then taps, of weight * source, from +0; then + bias[row].

    source, weight, table, bias, c: addresses; strides count floats. Tap t of a channel reads the source `offset` floats
    on and the weight `number` floats on, as entry t of the table says (`_planes.ENTRY` int64 each). The width is
    `vectors` whole vectors, but only `lanes` of the last are stored. Lanes outside a mask are not read.
    """

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        operands = _Operands(*arguments)
        index = builder.add(builder.mul(operands.rows, I64(VECTORS)), operands.vectors)
        after, nowhere = builder.append_basic_block("after"), builder.append_basic_block("nowhere")
        choice = builder.switch(index, nowhere)
        for i in range(1, ROWS + 1):
            for j in range(1, VECTORS + 1):
                block = builder.append_basic_block(f"tile_{i}_{j}")
                choice.add_case(I64(i * VECTORS + j), block)
                builder.position_at_end(block)
                _TileWriter(builder, operands, i, j).write()
                builder.branch(after)
        builder.position_at_end(nowhere)
        builder.unreachable()
        builder.position_at_end(after)
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 14), generate
