"""Reductions along rows, many rows side by side: each lane of a vector is one row's own ascending chain.

Rows are turned into panels first: element k of LANES rows stands in one vector. Lanes beyond the last row repeat it,
and their results are not used. Chains continue from what stands in memory, so columns may come block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from samebits._compile import intrinsic, routine
from samebits._gemm import pack_columns
from samebits._intrinsics import F32, I32, I64, load32, store32
from samebits._vectors import LANES, VECTOR, Vectors

COLUMNS = 128  # of a panel at a time: two stay in the first-level cache
PANEL_FLOATS = COLUMNS * LANES
FLOAT = 4  # bytes
ZERO = np.float32(0.0)
Step = Callable[[Vectors, Any, list[Any]], list[Any]]


def share(count: int) -> np.float32:
    """binary32(1 / count), for means; infinite for 0, so that the mean of nothing is NaN."""
    return np.float32(1.0 / count) if count else np.float32(math.inf)


def _ascend(builder: Any, count: Any, place: Any, num_chains: int, step: Step) -> None:
    """For k in 0..count: chains = step(vectors, k, chains), the chains loaded from `place` before and stored after."""
    v = Vectors(builder)
    home = [v.at(v.pointer(place), I64(i * LANES)) for i in range(num_chains)]
    start = [v.load(spot) for spot in home]
    before, head = builder.block, builder.append_basic_block("head")
    body, done = builder.append_basic_block("body"), builder.append_basic_block("done")
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(I64)
    chains = [builder.phi(VECTOR) for _ in home]
    builder.cbranch(builder.icmp_signed("<", k, count), body, done)
    builder.position_at_end(body)
    new = step(v, k, chains)
    last = builder.block
    for phi, first, value in zip([k, *chains], [I64(0), *start], [builder.add(k, I64(1)), *new], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(value, last)
    builder.branch(head)
    builder.position_at_end(done)
    for chain, spot in zip(chains, home, strict=True):
        v.store(chain, spot)


def _line(v: Vectors, panel: Any, k: Any) -> Any:
    return v.load(v.at(v.pointer(panel), v.builder.mul(k, I64(LANES))))


@intrinsic
def lane_sums(context: Any, count: Any, panel: Any, chains: Any) -> Any:
    """chain = chain + x[k], for the columns k of a panel x."""

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, panel, place = arguments
        _ascend(builder, count, place, 1, lambda v, k, chains: [builder.fadd(chains[0], _line(v, panel, k))])
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


@intrinsic
def lane_squares(context: Any, count: Any, panel: Any, means: Any, chains: Any) -> Any:
    """d = x[k] - mean; chain = fma(d, d, chain)."""

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, panel, means, place = arguments
        mean = _line(Vectors(builder), means, I64(0))

        def step(v: Vectors, k: Any, chains: list[Any]) -> list[Any]:
            d = builder.fsub(_line(v, panel, k), mean)
            return [v.fma(d, d, chains[0])]

        _ascend(builder, count, place, 1, step)
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@intrinsic
def lane_products(context: Any, count: Any, a: Any, b: Any, chains: Any) -> Any:
    """chain = fma(a[k], b[k], chain), for two panels."""

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, a, b, place = arguments
        _ascend(builder, count, place, 1, lambda v, k, chains: [v.fma(_line(v, a, k), _line(v, b, k), chains[0])])
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@intrinsic
def lane_weighted(
    context: Any, count: Any, grad: Any, x: Any, weight: Any, means: Any, scales: Any, chains: Any
) -> Any:  # fmt: skip
    """u = grad[k] * weight[k]; two chains: first + u, and fma(u, (x[k] - mean) * scale, second). weight is no panel."""

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count, grad, x, weight, means, scales, place = arguments
        outer = Vectors(builder)
        mean, scale, weights = _line(outer, means, I64(0)), _line(outer, scales, I64(0)), outer.pointer(weight)

        def step(v: Vectors, k: Any, chains: list[Any]) -> list[Any]:
            factor = v.spread(builder.load(builder.gep(weights, [k])))
            u = builder.fmul(_line(v, grad, k), factor)
            normal = builder.fmul(builder.fsub(_line(v, x, k), mean), scale)
            return [builder.fadd(chains[0], u), v.fma(u, normal, chains[1])]

        _ascend(builder, count, place, 2, step)
        return ctx.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


@intrinsic
def _vector_maximum(context: Any, row: Any, count: Any) -> Any:
    """The maximum of count >= LANES floats, NaN if any is: lane by lane, then scalar by scalar."""

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, count = arguments
        floats, last = Vectors(builder).pointer(row), builder.sub(count, I64(LANES))

        def larger(x: Any, m: Any) -> Any:
            taken = builder.or_(builder.fcmp_ordered(">", x, m), builder.fcmp_unordered("uno", x, x))
            return builder.select(taken, x, m)

        with builder.goto_entry_block():  # elsewhere, every call from a loop would take more of the stack
            place = builder.alloca(ir.ArrayType(F32, 4 * LANES))
        address = builder.ptrtoint(place, I64)
        v = Vectors(builder)
        for i in range(4):
            v.store(v.load(v.at(floats, I64(0))), v.at(v.pointer(address), I64(i * LANES)))

        def step(v: Vectors, k: Any, chains: list[Any]) -> list[Any]:
            new = []
            for i, chain in enumerate(chains):
                wanted = builder.add(builder.mul(k, I64(4 * LANES)), I64(i * LANES))
                within = builder.select(builder.icmp_signed("<", wanted, last), wanted, last)
                new.append(larger(v.load(v.at(floats, within)), chain))
            return new

        blocks = builder.sdiv(builder.add(count, I64(4 * LANES - 1)), I64(4 * LANES))
        _ascend(builder, blocks, address, 4, step)
        chains = [v.load(v.at(v.pointer(address), I64(i * LANES))) for i in range(4)]
        both = larger(larger(chains[0], chains[1]), larger(chains[2], chains[3]))
        apart = LANES // 2
        while apart:  # half the lanes against the other half, down to one
            both = larger(v.shuffle(both, both, [(lane + apart) % LANES for lane in range(LANES)]), both)
            apart //= 2
        return builder.extract_element(both, I32(0))

    return types.float32(types.intp, types.intp), generate


@routine()
def clear(chains: int, count: int) -> None:
    """Begin chains at +0."""
    for i in range(count):
        store32(chains, i, ZERO)


@routine()
def row_maximum(row: int, count: int) -> Any:
    """The maximum of count >= 1 floats: x is taken if x > m or x is NaN. Zeros of both signs are equal here."""
    if count >= LANES:
        return _vector_maximum(row, count)
    m = load32(row, 0)
    for k in range(1, count):
        x = load32(row, k)
        m = x if (x > m) | (x != x) else m
    return m


@routine()
def row_sums(rows: int, step: int, num_rows: int, count: int, panel: int, chains: int) -> None:
    """Continue LANES chains in memory: chain i = chain i + rows[i * step + k], k ascending; num_rows <= LANES."""
    for k in range(0, count, COLUMNS):
        width = min(COLUMNS, count - k)
        pack_columns(rows + k * FLOAT, step, num_rows, 1, width, panel)
        lane_sums(width, panel, chains)


@routine()
def row_products(a: int, b: int, step: int, num_rows: int, count: int, panels: int, chains: int) -> None:
    """Continue LANES chains in memory: chain i = fma(a[i * step + k], b[i * step + k], chain i). Takes two panels."""
    second = panels + PANEL_FLOATS * FLOAT
    for k in range(0, count, COLUMNS):
        width = min(COLUMNS, count - k)
        pack_columns(a + k * FLOAT, step, num_rows, 1, width, panels)
        pack_columns(b + k * FLOAT, step, num_rows, 1, width, second)
        lane_products(width, panels, second, chains)
