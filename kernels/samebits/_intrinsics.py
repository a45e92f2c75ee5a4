"""Single instructions that Numba lacks: fused multiply-add, casts of bits, and loads and stores by pointer."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from samebits._compile import intrinsic

_unpack: Any = cgutils.unpack_tuple
_alloca: Any = cgutils.alloca_once
_uniform: Any = types.UniTuple
F32, F64 = ir.FloatType(), ir.DoubleType()
I32, I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def fma32(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in binary32, rounded once."""
    return types.float32(types.float32, types.float32, types.float32), lambda ctx, b, sig, args: b.fma(*args)


@intrinsic
def fma64(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in binary64, rounded once."""
    return types.float64(types.float64, types.float64, types.float64), lambda ctx, b, sig, args: b.fma(*args)


@intrinsic
def bits32(context: Any, x: Any) -> Any:
    """The bits of a binary32, as int32."""
    return types.int32(types.float32), lambda ctx, b, sig, args: b.bitcast(args[0], I32)


@intrinsic
def from_bits32(context: Any, x: Any) -> Any:
    """The binary32 with these bits (an int32)."""
    return types.float32(types.int32), lambda ctx, b, sig, args: b.bitcast(args[0], F32)


@intrinsic
def bits64(context: Any, x: Any) -> Any:
    """The bits of a binary64, as int64."""
    return types.int64(types.float64), lambda ctx, b, sig, args: b.bitcast(args[0], I64)


@intrinsic
def from_bits64(context: Any, x: Any) -> Any:
    """The binary64 with these bits (an int64)."""
    return types.float64(types.int64), lambda ctx, b, sig, args: b.bitcast(args[0], F64)


def element(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    """The place of pointer[index] among elements of an LLVM kind."""
    return builder.gep(builder.inttoptr(pointer, ir.PointerType(kind)), [index])


def _load(kind: Any) -> Any:
    return lambda ctx, b, sig, args: b.load(element(b, args[0], args[1], kind))


def _store(kind: Any) -> Any:
    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        b.store(args[2], element(b, args[0], args[1], kind))
        return ctx.get_dummy_value()

    return generate


@intrinsic
def load32(context: Any, pointer: Any, index: Any) -> Any:
    """The binary32 at pointer[index]; pointer is an address as an integer."""
    return types.float32(types.intp, types.intp), _load(F32)


@intrinsic
def store32(context: Any, pointer: Any, index: Any, value: Any) -> Any:
    """pointer[index] = value, a binary32."""
    return types.void(types.intp, types.intp, types.float32), _store(F32)


@intrinsic
def load_i32(context: Any, pointer: Any, index: Any) -> Any:
    """The int32 at pointer[index]."""
    return types.int32(types.intp, types.intp), _load(I32)


@intrinsic
def load_i64(context: Any, pointer: Any, index: Any) -> Any:
    """The int64 at pointer[index]."""
    return types.int64(types.intp, types.intp), _load(I64)


@intrinsic
def store_i64(context: Any, pointer: Any, index: Any, value: Any) -> Any:
    """pointer[index] = value, an int64."""
    return types.void(types.intp, types.intp, types.int64), _store(I64)


@intrinsic
def call_kernel(context: Any, address: Any, integers: Any) -> Any:
    """Call the kernel at Kernel.address() with a tuple of integers, for its effect on memory.

    A large kernel is so compiled once, not again into each kernel that uses it. What a kernel could raise is dropped:
    kernels raise nothing.
    """

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        values = _unpack(b, args[1])
        pointer = ir.PointerType(ir.IntType(8))
        kind = ir.FunctionType(I32, [ir.PointerType(pointer), ir.PointerType(pointer), *[I64] * len(values)])
        result, error = _alloca(b, pointer), _alloca(b, pointer)
        b.call(b.inttoptr(args[0], ir.PointerType(kind)), [result, error, *values])
        return ctx.get_dummy_value()

    return types.void(types.intp, _uniform(types.intp, len(integers))), generate


@intrinsic
def ask_kernel(context: Any, address: Any, argument: Any) -> Any:
    """What the kernel "int64(intp)" at an address answers."""

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = ir.PointerType(ir.IntType(8))
        kind = ir.FunctionType(I32, [ir.PointerType(I64), ir.PointerType(pointer), I64])
        result, error = _alloca(b, I64), _alloca(b, pointer)
        b.call(b.inttoptr(args[0], ir.PointerType(kind)), [result, error, args[1]])
        return b.load(result)

    return types.int64(types.intp, types.intp), generate
