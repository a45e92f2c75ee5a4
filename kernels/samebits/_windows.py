"""The maximum of each window of a plane, a vector of windows side by side, written as LLVM IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from samebits._compile import intrinsic
from samebits._intrinsics import F32, I32, I64
from samebits._vectors import ALIGN, LANES, MASK, VECTOR, Vectors

INTS = ir.VectorType(I32, LANES)
POINTERS = ir.VectorType(ir.PointerType(F32), LANES)


def _integers(v: Vectors, address: Any, index: Any) -> Any:
    """The place of a vector of int32, `index` of them after an address."""
    pointer = v.builder.inttoptr(address, ir.PointerType(I32))
    return v.builder.bitcast(v.builder.gep(pointer, [index]), ir.PointerType(INTS))


def _gather(v: Vectors, plane: Any, places: Any) -> Any:
    """plane[places[lane]] in every lane."""
    b, wide = v.builder, ir.VectorType(I64, LANES)
    bytes_on = b.shl(b.sext(places, wide), ir.Constant(wide, [2] * LANES))
    pointers = b.inttoptr(b.add(v.spread(plane), bytes_on), POINTERS)
    function = v._declared(f"llvm.masked.gather.v{LANES}f32.v{LANES}p0", VECTOR, [POINTERS, I32, MASK, VECTOR])
    return b.call(function, [pointers, I32(ALIGN), ir.Constant(MASK, [1] * LANES), v.zero])


@intrinsic
def window_maxima(
    context: Any, plane: Any, places: Any, step: Any, taps: Any, y: Any, winners: Any, lanes: Any
) -> Any:  # fmt: skip
    """y[lane], winners[lane] = the maximum of plane[places[t * step + lane]] over ascending t, and its place.

    x is taken if x > m or x is NaN, so the first of equals wins. places and winners are int32; taps >= 1. Only the
    first `lanes` are stored.
    """

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        plane, places, step, taps, y, winners, lanes = arguments
        v, b = Vectors(builder), builder
        first = b.load(_integers(v, places, I64(0)))
        first.align = ALIGN
        start = _gather(v, plane, first)
        before, loop, done = b.block, b.append_basic_block("loop"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        t, best, won = b.phi(I64), b.phi(VECTOR), b.phi(INTS)
        here = b.load(_integers(v, places, b.mul(t, step)))
        here.align = ALIGN
        x = _gather(v, plane, here)
        taken = b.or_(b.fcmp_ordered(">", x, best), b.fcmp_unordered("uno", x, x))
        new, place, following = b.select(taken, x, best), b.select(taken, here, won), b.add(t, I64(1))
        for phi, begin, value in ((t, I64(0), following), (best, start, new), (won, first, place)):
            phi.add_incoming(begin, before)
            phi.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", following, taps), loop, done)
        b.position_at_end(done)
        mask = v.first_lanes(lanes)
        v.store(new, v.at(v.pointer(y), I64(0)), mask)
        v.store(b.bitcast(place, VECTOR), v.at(v.pointer(winners), I64(0)), mask)
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 7), generate
