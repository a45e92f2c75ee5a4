"""C = A @ B for a few rows of A, where packing B would cost more than the product itself.

B is read once, from where it lies. Rows of B are streamed, many vectors side by side, each vector's lanes their own
chains. Columns of B are turned in registers, and each turned vector meets all rows of A. As everywhere, only outputs
are divided, and each is one ascending chain.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from samebits._compile import intrinsic, kernel, routine
from samebits._intrinsics import I32, I64
from samebits._tile import Operands, TileWriter, lines_from, turned
from samebits._vectors import LANES, ROWS, VECTOR, VECTORS, Vectors

FLOAT = 4  # bytes
DEPTH = 128  # k per block: as many pages stay known to the processor while the strips of a block take turns
STRIP_ROWS = 8
TURNED_ROWS = 8


def strip_vectors(rows: int) -> int:
    """Vectors of B's rows that a strip takes at once: the largest power of two whose chains fit the registers."""
    vectors = 1
    while vectors * 2 * rows <= ROWS * VECTORS:
        vectors *= 2
    return vectors


_strip_vectors = routine()(strip_vectors)
WIDEST = strip_vectors(1) * LANES  # columns of the widest strip, and a multiple of all others


def _by_rows(builder: Any, rows: Any, most: int, write: Any) -> None:
    """A switch over the number of rows; write(count) emits the code for one."""
    after, nowhere = builder.append_basic_block("after"), builder.append_basic_block("nowhere")
    choice = builder.switch(rows, nowhere)
    for count in range(1, most + 1):
        block = builder.append_basic_block(f"rows_{count}")
        choice.add_case(I64(count), block)
        builder.position_at_end(block)
        write(count)
        builder.branch(after)
    builder.position_at_end(nowhere)
    builder.unreachable()
    builder.position_at_end(after)


@intrinsic
def strip(
    context: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, c: Any, c_row: Any, bias: Any, depth: Any,
    rows: Any, fresh: Any,
) -> Any:  # fmt: skip
    """As `tile`, for rows <= STRIP_ROWS and strip_vectors(rows) whole vectors."""

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, a_row, a_step, b, b_step, c, c_row, bias, depth, rows, fresh = arguments
        operands = Operands(a, a_row, a_step, b, b_step, c, c_row, bias, depth, rows, None, None, fresh)

        def write(count: int) -> None:
            TileWriter(builder, operands, count, strip_vectors(count)).write()

        _by_rows(builder, rows, STRIP_ROWS, write)
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 11), generate


class _TurnedWriter:
    """Writes the chains of `rows` rows of A with LANES columns of B."""

    def __init__(self, builder: Any, rows: int, operands: tuple[Any, ...]) -> None:
        self.builder, self.rows, self.v = builder, rows, Vectors(builder)
        a, a_row, b, column, c, c_row, bias, self.depth, lanes, self.fresh = operands
        self.lines = lines_from(self.v, b, builder.sub(lanes, I64(1)), column)
        self.factors = [builder.gep(self.v.pointer(a), [builder.mul(I64(i), a_row)]) for i in range(rows)]
        self.mask = self.v.first_lanes(lanes)
        self.places = [self.v.at(self.v.pointer(c), builder.mul(I64(i), c_row)) for i in range(rows)]
        self.bias = self.v.at(self.v.pointer(bias), I64(0))

    def write(self) -> None:
        """All of it, from the builder's block to a new one."""
        b = self.builder
        old = b.icmp_signed("==", self.fresh, I64(0))
        kept = b.and_(self.mask, self.v.spread(old))  # fresh chains begin at +0 and do not read C
        chains = [self.v.load(place, kept) for place in self.places]
        whole = b.and_(self.depth, I64(-LANES))
        chains = self._loop(I64(0), whole, LANES, chains, self._block)
        chains = self._loop(whole, self.depth, 1, chains, self._single)
        addend = self.v.load(self.bias, self.mask)
        for chain, place in zip(chains, self.places, strict=True):
            self.v.store(b.fadd(chain, addend), place, self.mask)

    def _loop(self, begin: Any, end: Any, step: int, chains: list[Any], body: Any) -> list[Any]:
        """chains = body(k, chains) for k = begin, begin + step, ... below end."""
        b = self.builder
        before, head = b.block, b.append_basic_block("head")
        inside, done = b.append_basic_block("inside"), b.append_basic_block("done")
        b.branch(head)
        b.position_at_end(head)
        k, current = b.phi(I64), [b.phi(VECTOR) for _ in chains]
        b.cbranch(b.icmp_signed("<", k, end), inside, done)
        b.position_at_end(inside)
        new = body(k, current)
        for phi, first, value in zip([k, *current], [begin, *chains], [b.add(k, I64(step)), *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, inside)
        b.branch(head)
        b.position_at_end(done)
        return current

    def _block(self, k: Any, chains: list[Any]) -> list[Any]:
        for i, across in enumerate(turned(self.v, self.lines, k)):
            chains = self._step(self.builder.add(k, I64(i)), across, chains)
        return chains

    def _single(self, k: Any, chains: list[Any]) -> list[Any]:
        across = ir.Constant(VECTOR, ir.Undefined)
        for lane, line in enumerate(self.lines):
            value = self.builder.load(self.builder.gep(line, [k]))
            across = self.builder.insert_element(across, value, I32(lane))
        return self._step(k, across, chains)

    def _step(self, k: Any, across: Any, chains: list[Any]) -> list[Any]:
        factors = [self.v.spread(self.builder.load(self.builder.gep(row, [k]))) for row in self.factors]
        return [self.v.fma(factor, across, chain) for factor, chain in zip(factors, chains, strict=True)]


@intrinsic
def turned_columns(
    context: Any, a: Any, a_row: Any, b: Any, column: Any, c: Any, c_row: Any, bias: Any, depth: Any, lanes: Any,
    fresh: Any, rows: Any,
) -> Any:  # fmt: skip
    """c[i, j] = chain over k of a[i * a_row + k] * b[j * column + k] for j < lanes <= LANES; then + bias[j]."""

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *operands, rows = arguments
        _by_rows(builder, rows, TURNED_ROWS, lambda count: _TurnedWriter(builder, count, tuple(operands)).write())
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 11), generate


@kernel("void(" + ", ".join(["intp"] * 14) + ")")
def by_strips(
    a: int, a_row: int, a_step: int, b: int, b_step: int, c: int, c_row: int, bias: int, neutral: int,
    m: int, n: int, k: int, fresh: int, height: int,
) -> None:  # fmt: skip
    """C[m, n] for rows of B with unit stride, `height` <= STRIP_ROWS rows at a time; k > 0.

    n: a multiple of the width of strips for height rows, and for those that are left.

    neutral: the address of WIDEST floats -0, which take the place of a bias.
    """
    for k0 in range(0, k, DEPTH):
        depth, begin = min(DEPTH, k - k0), fresh if k0 == 0 else 0
        last = bias != 0 and k0 + depth == k
        for i in range(0, m, height):
            rows = min(height, m - i)
            width = _strip_vectors(rows) * LANES
            line, across, goal = a + (i * a_row + k0 * a_step) * FLOAT, b + k0 * b_step * FLOAT, c + i * c_row * FLOAT
            for j in range(0, n, width):
                at, addend = j * FLOAT, bias + j * FLOAT if last else neutral
                strip(line, a_row, a_step, across + at, b_step, goal + at, c_row, addend, depth, rows, begin)


@kernel("void(" + ", ".join(["intp"] * 12) + ")")
def by_columns(
    a: int, a_row: int, b: int, b_column: int, c: int, c_row: int, bias: int, neutral: int,
    m: int, n: int, k: int, fresh: int,
) -> None:  # fmt: skip
    """C[m, n] for rows of A and columns of B with unit stride; m <= TURNED_ROWS."""
    for j in range(0, n, LANES):
        addend = bias + j * FLOAT if bias != 0 else neutral
        column, goal = b + j * b_column * FLOAT, c + j * FLOAT
        turned_columns(a, a_row, column, b_column, goal, c_row, addend, k, min(LANES, n - j), fresh, m)
