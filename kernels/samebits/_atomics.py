"""What threads need to agree through memory: indivisible operations on words, a pause, and calls by address.

All are sequentially consistent, so that what one thread wrote before is seen by whoever sees the word, on every
processor. Words are int64 at pointer[index].
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from samebits._cache import target
from samebits._compile import intrinsic
from samebits._intrinsics import F32, I32, I64, element

_alloca: Any = cgutils.alloca_once
_declare: Any = cgutils.get_or_insert_function
ORDER = "seq_cst"
WORD_BYTES = 8
MAX_INTEGERS, MAX_FLOATS = 36, 8  # arguments of a kernel that can be called from a record
ADDRESS_AT, COUNT_AT, INTEGERS_AT = 0, 1, 2  # of a record, in words
FLOATS_AT = INTEGERS_AT + MAX_INTEGERS
RECORD_WORDS = FLOATS_AT + MAX_FLOATS * 4 // WORD_BYTES

_PAUSE, _BARRIER = ("llvm.x86.sse2.pause", ()), ("llvm.aarch64.isb", (15,))  # with their arguments
_WAITS = {"x86_64": _PAUSE, "i686": _PAUSE, "aarch64": _BARRIER, "arm64": _BARRIER}  # by the triple's first part


@intrinsic
def load_word(context: Any, pointer: Any, index: Any) -> Any:
    """The word now."""

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.load_atomic(element(b, args[0], args[1], I64), ORDER, WORD_BYTES)

    return types.int64(types.intp, types.intp), generate


@intrinsic
def store_word(context: Any, pointer: Any, index: Any, value: Any) -> Any:
    """Make the word this value."""

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        b.store_atomic(args[2], element(b, args[0], args[1], I64), ORDER, WORD_BYTES)
        return ctx.get_dummy_value()

    return types.void(types.intp, types.intp, types.int64), generate


@intrinsic
def add_word(context: Any, pointer: Any, index: Any, value: Any) -> Any:
    """Add to the word; what it was before."""

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("add", element(b, args[0], args[1], I64), args[2], ORDER)

    return types.int64(types.intp, types.intp, types.int64), generate


@intrinsic
def swap_word(context: Any, pointer: Any, index: Any, expected: Any, value: Any) -> Any:
    """Make the word `value` if it is `expected`; whether it was."""

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        found = b.cmpxchg(element(b, args[0], args[1], I64), args[2], args[3], ORDER, ORDER)
        return b.extract_value(found, 1)

    return types.boolean(types.intp, types.intp, types.int64, types.int64), generate


@intrinsic
def pause(context: Any) -> Any:
    """Let the processor rest for some cycles, as it wishes where a loop waits for another thread."""

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if wait := _WAITS.get(target()[0].partition("-")[0]):
            name, arguments = wait
            kind = ir.FunctionType(ir.VoidType(), [I32] * len(arguments))
            b.call(_declare(b.module, kind, name), [I32(value) for value in arguments])
        return ctx.get_dummy_value()

    return types.void(), generate


@intrinsic
def call_c(context: Any, address: Any, argument: Any) -> Any:
    """Call the C function `int f(void *)` at an address; functions without arguments overlook theirs."""

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(I32, [ir.PointerType(ir.IntType(8))])
        function = b.inttoptr(args[0], ir.PointerType(kind))
        return b.call(function, [b.inttoptr(args[1], ir.PointerType(ir.IntType(8)))])

    return types.int32(types.intp, types.intp), generate


@intrinsic
def monotonic_ns(context: Any, address: Any, clock: Any) -> Any:
    """Nanoseconds by the C function `clock_gettime` at an address."""

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        time = _alloca(b, ir.ArrayType(I64, 2))
        kind = ir.FunctionType(I32, [I32, time.type])
        b.call(b.inttoptr(args[0], ir.PointerType(kind)), [b.trunc(args[1], I32), time])
        seconds, rest = (b.load(b.gep(time, [I32(0), I32(i)])) for i in (0, 1))
        return b.add(b.mul(seconds, I64(1_000_000_000)), rest)

    return types.int64(types.intp, types.intp), generate


@intrinsic
def call_record(context: Any, record: Any) -> Any:
    """Call the kernel that a record names, by what stands there: its address, its integers, its floats.

    The record does not say where the floats stood among the integers, and need not: on the processors that have a tile
    here, C's conventions number integers and floats apart, and up to MAX_FLOATS floats are all in registers of their
    own. So every kernel is called as one with its floats last, and with spare ones, which it does not read.
    """

    def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = ir.PointerType(ir.IntType(8))
        result, error = _alloca(b, pointer), _alloca(b, pointer)
        words, floats = b.inttoptr(args[0], ir.PointerType(I64)), b.inttoptr(args[0], ir.PointerType(F32))
        address, count = (b.load(b.gep(words, [I64(at)])) for at in (ADDRESS_AT, COUNT_AT))
        tail = [b.load(b.gep(floats, [I64(FLOATS_AT * 2 + i)])) for i in range(MAX_FLOATS)]
        after, nowhere = b.append_basic_block("after"), b.append_basic_block("nowhere")
        choice = b.switch(count, nowhere)
        for number in range(MAX_INTEGERS + 1):
            block = b.append_basic_block(f"integers_{number}")
            choice.add_case(I64(number), block)
            b.position_at_end(block)
            head = [b.load(b.gep(words, [I64(INTEGERS_AT + i)])) for i in range(number)]
            types_of = [result.type, error.type, *[I64] * number, *[F32] * MAX_FLOATS]
            kind = ir.PointerType(ir.FunctionType(I32, types_of))
            b.call(b.inttoptr(address, kind), [result, error, *head, *tail])
            b.branch(after)
        b.position_at_end(nowhere)
        b.unreachable()
        b.position_at_end(after)
        return ctx.get_dummy_value()

    return types.void(types.intp), generate
