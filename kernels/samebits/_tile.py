"""The register tile of the matrix product, written as LLVM IR.

A tile is `rows` x `vectors` accumulators that stay in registers while k ascends; each lane is one chain of fused
multiply-adds. Every size up to ROWS x VECTORS exists, so that edges cost what they are worth. Sizes follow the
processor that Numba compiles for; they change the speed and no bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from numba import types

from samebits._compile import intrinsic
from samebits._intrinsics import I64
from samebits._vectors import LANES, QUARTER, ROWS, VECTOR, VECTORS, Vectors

AHEAD = 4  # rows of B fetched before their use: rows far apart are beyond what a processor guesses by itself


class Operands(NamedTuple):
    """The tile's arguments as LLVM values; see `tile`."""

    a: Any
    a_row: Any
    a_step: Any
    b: Any
    b_step: Any
    c: Any
    c_row: Any
    bias: Any
    depth: Any
    rows: Any
    vectors: Any
    lanes: Any
    fresh: Any


class TileWriter:
    """Writes one size of tile."""

    def __init__(self, builder: Any, operands: Operands, rows: int, vectors: int) -> None:
        self.builder, self.operands = builder, operands
        self.v = Vectors(builder)
        self.cells = [(i, j) for i in range(rows) for j in range(vectors)]
        self.rows, self.vectors = rows, vectors
        last = None if operands.lanes is None else self.v.first_lanes(operands.lanes)
        self.masks = [None] * (vectors - 1) + [last]
        c = self.v.pointer(operands.c)
        offsets = [builder.add(builder.mul(I64(i), operands.c_row), I64(j * LANES)) for i, j in self.cells]
        self.places = [self.v.at(c, offset) for offset in offsets]

    def write(self) -> None:
        """The whole tile, from the builder's block to a new one where it leaves the builder."""
        total = self._chains(self._start())
        bias = self.v.pointer(self.operands.bias)
        addends = [self.v.load(self.v.at(bias, I64(j * LANES)), self.masks[j]) for j in range(self.vectors)]
        for (_, j), place, value in zip(self.cells, self.places, total, strict=True):
            self.v.store(self.builder.fadd(value, addends[j]), place, self.masks[j])

    def _start(self) -> list[Any]:
        """The accumulators' first values: +0 if fresh, else what stands in C."""
        b = self.builder
        before, resume, enter = b.block, b.append_basic_block("resume"), b.append_basic_block("enter")
        b.cbranch(b.icmp_signed("!=", self.operands.fresh, I64(0)), enter, resume)
        b.position_at_end(resume)
        loaded = [self.v.load(place, self.masks[j]) for place, (_, j) in zip(self.places, self.cells, strict=True)]
        b.branch(enter)
        b.position_at_end(enter)
        start = [b.phi(VECTOR) for _ in self.cells]
        for phi, value in zip(start, loaded, strict=True):
            phi.add_incoming(self.v.zero, before)
            phi.add_incoming(value, resume)
        return start

    def _chains(self, start: list[Any]) -> list[Any]:
        """The loop over k, which runs at least once; returns the accumulators after it."""
        b = self.builder
        before, loop, done = b.block, b.append_basic_block("k"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        k = b.phi(I64)
        accumulators = [b.phi(VECTOR) for _ in self.cells]
        new = self._one_step(k, accumulators)
        k_next = b.add(k, I64(1))
        for phi, first, value in zip([k, *accumulators], [I64(0), *start], [k_next, *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", k_next, self.operands.depth), loop, done)
        b.position_at_end(done)
        return new

    def _one_step(self, k: Any, accumulators: list[Any]) -> list[Any]:
        """accumulator[i, j] = fma(a[i, k], b[k, j], accumulator[i, j]) for all i and j."""
        b, o = self.builder, self.operands
        a_pointer, b_pointer = self.v.pointer(o.a), self.v.pointer(o.b)
        b_row = b.mul(k, o.b_step)
        later = b.mul(b.add(k, I64(AHEAD)), o.b_step)
        for j in range(self.vectors):
            self.v.prefetch(self.v.at(b_pointer, b.add(later, I64(j * LANES))))
        across = [self.v.load(self.v.at(b_pointer, b.add(b_row, I64(j * LANES)))) for j in range(self.vectors)]
        new = []
        for i in range(self.rows):
            offset = b.add(b.mul(I64(i), o.a_row), b.mul(k, o.a_step))
            factor = self.v.spread(b.load(b.gep(a_pointer, [offset])))
            new += [self.v.fma(factor, across[j], accumulators[i * self.vectors + j]) for j in range(self.vectors)]
        return new


@intrinsic
def tile(
    context: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, c: Any, c_row: Any, bias: Any, depth: Any,
    rows: Any, vectors: Any, lanes: Any, fresh: Any,
) -> Any:  # fmt: skip
    """c[rows, width] = chain over k of a[i, k] * b[k, j], from +0 if fresh, else from c; then + bias[j].

    a, b, c, bias: addresses. Strides count floats: a[i, k] lies at i * a_row + k * a_step, row k of b at k * b_step,
    row i of c at i * c_row. depth >= 1: how many k. The width is vectors whole vectors, but only `lanes` of the last:
    b must be readable to its full width, c and bias are not touched beyond. A bias of -0 changes nothing.
    """

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        operands = Operands(*arguments)
        sizes = [(i, j) for i in range(1, ROWS + 1) for j in range(1, VECTORS + 1)]
        index = builder.add(builder.mul(operands.rows, I64(VECTORS)), operands.vectors)
        after, nowhere = builder.append_basic_block("after"), builder.append_basic_block("nowhere")
        choice = builder.switch(index, nowhere)
        for i, j in sizes:
            block = builder.append_basic_block(f"tile_{i}_{j}")
            choice.add_case(I64(i * VECTORS + j), block)
            builder.position_at_end(block)
            TileWriter(builder, operands, i, j).write()
            builder.branch(after)
        builder.position_at_end(nowhere)
        builder.unreachable()
        builder.position_at_end(after)
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 13), generate


@intrinsic
def transpose_block(context: Any, source: Any, last: Any, row: Any, target: Any, step: Any) -> Any:
    """target[k * step + j] = source[min(j, last) * row + k] for j, k < LANES: vectors across become vectors along.

    Rows beyond `last` repeat it, so that nothing outside the source is read; what they hold is never stored in C.
    """

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, last, row, target, step = arguments
        v = Vectors(builder)
        goal = v.pointer(target)
        for k, line in enumerate(turned(v, lines_from(v, source, last, row), I64(0))):
            v.store(line, v.at(goal, builder.mul(I64(k), step)))
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


def lines_from(v: Vectors, source: Any, last: Any, row: Any) -> list[Any]:
    """Pointers to LANES lines `row` floats apart, of which those beyond `last` repeat it."""
    b, origin = v.builder, v.pointer(source)
    numbers = [b.select(b.icmp_signed("<", I64(j), last), I64(j), last) for j in range(LANES)]
    return [b.gep(origin, [b.mul(number, row)]) for number in numbers]


def turned(v: Vectors, lines: list[Any], k: Any) -> Iterator[Any]:
    """Elements k, k + 1, ... k + LANES - 1 of LANES lines, each as one vector across the lines.

    Quarters of four floats are put together from memory, which spares half of the shuffles: a vector of quarters of
    every fourth line; then squares of four by four are turned within the quarters.
    """
    for chunk in range(0, LANES, QUARTER):
        at = v.builder.add(k, I64(chunk))
        rows = [v.quarters([v.builder.gep(line, [at]) for line in lines[j::QUARTER]]) for j in range(QUARTER)]
        low, high = (
            [v.within_quarters(rows[j], rows[j + 1], pick) for j in (0, 2)] for pick in ([0, 4, 1, 5], [2, 6, 3, 7])
        )
        for first, second in (low, high):
            for pick in ([0, 1, 4, 5], [2, 3, 6, 7]):
                yield v.within_quarters(first, second, pick)


@intrinsic
def copy_vector(context: Any, source: Any, target: Any, lanes: Any) -> Any:
    """The first `lanes` floats at one address, then +0 to the end of the vector, to another address."""

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target, lanes = arguments
        v = Vectors(builder)
        line = v.load(v.at(v.pointer(source), I64(0)), v.first_lanes(lanes))
        v.store(line, v.at(v.pointer(target), I64(0)))
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 3), generate
