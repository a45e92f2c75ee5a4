"""Whole-vector loads, stores, masks and fused multiply-adds for functions written as LLVM IR, and the tile's shape."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from llvmlite import ir

from samebits._cache import target
from samebits._intrinsics import F32, I32, I64


class Shape(NamedTuple):
    """Lanes of a vector register, and the accumulators that fit beside their operands: rows x vectors."""

    lanes: int
    rows: int
    vectors: int


def shape_for(triple: str, features: str) -> Shape:
    """The tile for a processor: 24 accumulators where there are 32 registers, 12 where there are 16.

    $SAMEBITS_TILE, e.g. "4,8,3", tries another one's on this processor; tests do, to show that it changes no bit.
    """
    if tried := os.environ.get("SAMEBITS_TILE"):
        lanes, rows, vectors = (int(part) for part in tried.split(","))
        return Shape(lanes, rows, vectors)
    has = set(features.split(","))
    if not triple.startswith(("x86_64", "i686", "amd64")):
        return Shape(4, 8, 3)
    if "+avx512f" in has:
        return Shape(16, 8, 3)
    return Shape(8, 6, 2)


LANES, ROWS, VECTORS = shape_for(target()[0], target()[2])
VECTOR = ir.VectorType(F32, LANES)
MASK = ir.VectorType(ir.IntType(1), LANES)
FLOATS = ir.PointerType(F32)
QUARTER = 4  # floats of a 128-bit register, within which every processor shuffles cheaply
SMALL = ir.VectorType(F32, QUARTER)
ALIGN = 4  # bytes; all that is known of a caller's tensor


class Vectors:
    """Emits vector code at the builder's position. Addresses are integers until `at` makes them pointers."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.zero = ir.Constant(VECTOR, [0.0] * LANES)

    def _declared(self, name: str, result: Any, arguments: list[Any]) -> Any:
        module = self.builder.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name=name)

    def pointer(self, address: Any) -> Any:
        """The float pointer of an integer address."""
        return self.builder.inttoptr(address, FLOATS)

    def at(self, pointer: Any, offset: Any) -> Any:
        """The vector's place `offset` floats after a pointer."""
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), ir.PointerType(VECTOR))

    def load(self, place: Any, mask: Any = None) -> Any:
        """A vector from memory; lanes outside the mask are not touched and read as zero."""
        if mask is None:
            loaded = self.builder.load(place)
            loaded.align = ALIGN
            return loaded
        kinds = [ir.PointerType(VECTOR), I32, MASK, VECTOR]
        function = self._declared(f"llvm.masked.load.v{LANES}f32.p0", VECTOR, kinds)
        return self.builder.call(function, [place, I32(ALIGN), mask, self.zero])

    def store(self, vector: Any, place: Any, mask: Any = None) -> None:
        """A vector to memory; lanes outside the mask are not touched."""
        if mask is None:
            self.builder.store(vector, place).align = ALIGN
            return
        kinds = [VECTOR, ir.PointerType(VECTOR), I32, MASK]
        function = self._declared(f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), kinds)
        self.builder.call(function, [vector, place, I32(ALIGN), mask])

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once, in every lane."""
        return self.builder.call(self._declared(f"llvm.fma.v{LANES}f32", VECTOR, [VECTOR] * 3), [a, b, c])

    def spread(self, scalar: Any) -> Any:
        """The scalar in every lane."""
        kind = ir.VectorType(scalar.type, LANES)
        lane = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
        return self.shuffle(lane, lane, [0] * LANES)

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """The named lanes of a (0..) and b (LANES..)."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, LANES), lanes))

    def prefetch(self, place: Any) -> None:
        """Have the line at a place brought to the first-level cache; any address will do."""
        byte = ir.PointerType(ir.IntType(8))
        function = self._declared("llvm.prefetch.p0", ir.VoidType(), [byte, I32, I32, I32])
        self.builder.call(function, [self.builder.bitcast(place, byte), I32(0), I32(3), I32(1)])

    def quarters(self, pointers: list[Any]) -> Any:
        """A vector of quarters, each of four floats at a pointer."""
        b, whole = self.builder, None
        for i, pointer in enumerate(pointers):
            part = b.load(b.bitcast(pointer, ir.PointerType(SMALL)))
            part.align = ALIGN
            if len(pointers) == 1:
                return part
            kinds = [VECTOR, SMALL, I64]
            function = self._declared(f"llvm.vector.insert.v{LANES}f32.v{QUARTER}f32", VECTOR, kinds)
            before = ir.Constant(VECTOR, ir.Undefined) if whole is None else whole
            whole = b.call(function, [before, part, I64(i * QUARTER)])
        return whole

    def within_quarters(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """In each quarter the named lanes of a's (0..) and b's (QUARTER..)."""
        starts = range(0, LANES, QUARTER)
        return self.shuffle(a, b, [s + (i if i < QUARTER else i - QUARTER + LANES) for s in starts for i in lanes])

    def first_lanes(self, count: Any) -> Any:
        """The mask of the first `count` lanes."""
        numbers = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
        return self.builder.icmp_signed("<", numbers, self.spread(count))
