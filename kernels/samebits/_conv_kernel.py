"""The gradients of a convolution's kernel and bias: chains over (image, row, column) of the output."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from samebits._chains import lane_sums
from samebits._compile import kernel, routine
from samebits._gemm import pack_columns
from samebits._intrinsics import load32, store32
from samebits._planes import Window
from samebits._taps_tile import HEIGHTS, TAPS, WIDE, taps_tile
from samebits._threads import WORTH_SHARING, get_num_threads, run, scratch, shares
from samebits._vectors import LANES

FLOAT, INT64 = 4, 8  # bytes
ZERO = np.float32(0.0)
SHORT, STEP = HEIGHTS[0], HEIGHTS[1] - HEIGHTS[0]
WORTH_THREADS = WORTH_SHARING >> 2  # multiply-adds; they are slower here than in a product


class Taps(NamedTuple):
    """The taps of all channels of a group, in tiles of TAPS; the last tile's spare ones repeat its first."""

    tiles: int
    offsets: Tensor
    """Floats from a place's first element of the padded input, [tiles, TAPS]."""
    row_bits: Tensor
    """Bit t of [tile, i]: whether row i of the output has tap t."""
    column_bits: Tensor


@lru_cache(maxsize=256)
def taps_of(rows: Window, columns: Window, channels: int) -> Taps:
    """The tables of a convolution with so many channels in a group."""
    total = channels * rows.kernel * columns.kernel
    tiles = -(-total // TAPS)
    height, width = rows.size + 2 * rows.padding, columns.size + 2 * columns.padding
    taps = np.arange(tiles * TAPS)
    taps = np.where(taps < total, taps, taps // TAPS * TAPS)
    channel, rest = taps // (rows.kernel * columns.kernel), taps % (rows.kernel * columns.kernel)
    row, column = rest // columns.kernel * rows.dilation, rest % columns.kernel * columns.dilation
    offsets = (channel * height + row) * width + column
    bits = []
    for window, place in ((rows, row), (columns, column)):
        there = np.arange(window.outputs)[:, None] * window.stride - window.padding + place[None, :]
        inside = ((there >= 0) & (there < window.size)).reshape(window.outputs, tiles, TAPS)
        bits.append(torch.from_numpy((inside.astype(np.int64) << np.arange(TAPS)).sum(axis=-1).T.copy()))
    return Taps(tiles, torch.from_numpy(offsets.reshape(tiles, TAPS)), *bits)


@routine()
def pad(plane: int, rows: int, columns: int, row_padding: int, column_padding: int, target: int) -> None:
    """Copy a plane with so many rows and columns of +0 around it."""
    pitch = columns + 2 * column_padding
    for place in range((rows + 2 * row_padding) * pitch):
        store32(target, place, ZERO)
    for i in range(rows):
        line, goal = plane + i * columns * FLOAT, target + ((i + row_padding) * pitch + column_padding) * FLOAT
        for j in range(columns):
            store32(goal, j, load32(line, j))


@routine()
def turn(rows: int, row: int, lanes: int, depth: int, target: int, step: int) -> None:
    """Turn `lanes` rows of depth floats into vectors; each LANES of them make a panel, `step` floats apart."""
    for lane in range(0, lanes, LANES):
        goal = target + lane // LANES * step * FLOAT
        pack_columns(rows + lane * row * FLOAT, row, min(LANES, lanes - lane), 1, depth, goal)


@routine()
def turn_back(sums: int, step: int, taps: int, lanes: int, row: int, target: int) -> None:
    """What `turn` did, undone: panels of taps become `lanes` rows of them."""
    for lane in range(lanes):
        line = sums + (lane // LANES * step + lane % LANES) * FLOAT
        for t in range(taps):
            store32(target, lane * row + t, load32(line, t * LANES))


@routine()
def pad_planes(
    planes: int, channels: int, rows: int, columns: int, row_padding: int, column_padding: int, target: int
) -> int:
    """Pad all planes of an image, if there is padding; where they lie then."""
    if row_padding == 0 and column_padding == 0:
        return planes
    step = (rows + 2 * row_padding) * (columns + 2 * column_padding)
    for c in range(channels):
        plane, goal = planes + c * rows * columns * FLOAT, target + c * step * FLOAT
        pad(plane, rows, columns, row_padding, column_padding, goal)
    return target


@routine()
def _block_gradient(
    x: int, grad: int, weight_grad: int, bias_grad: int, images: int, groups: int, channels: int, outputs: int,
    rows: int, columns: int, row_padding: int, column_padding: int, row_stride: int, column_stride: int,
    out_rows: int, out_columns: int, total: int, tiles: int, offsets: int, row_bits: int, column_bits: int,
    blocks: int, unit: int, first: int, last: int, panel: int, scratch: int,
) -> None:  # fmt: skip
    """Tiles first..last of taps, of block `unit` of WIDE * LANES output channels.

    panel: the gradients of the output, turned, then the sums of the bias. scratch: the sums, then the padded planes.
    """
    g, lane = unit // blocks, unit % blocks * WIDE * LANES
    lanes, begin, end = min(WIDE * LANES, outputs - lane), first * TAPS, min(last * TAPS, total)
    vectors = (lanes + LANES - 1) // LANES
    width, places, sums_bias = columns + 2 * column_padding, out_rows * out_columns, (first == 0) & (bias_grad != 0)
    panel_step, sums_step = places * LANES, (last - first) * TAPS * LANES
    planes, bias_chains = scratch + WIDE * sums_step * FLOAT, panel + WIDE * panel_step * FLOAT
    own = weight_grad + ((g * outputs + lane) * total + begin) * FLOAT
    turn(own, total, lanes, end - begin, scratch, sums_step)
    bias_sums = bias_grad + (g * outputs + lane) * FLOAT
    if sums_bias:
        turn(bias_sums, 1, lanes, 1, bias_chains, LANES)
    for n in range(images):
        own_grad = grad + ((n * groups + g) * outputs + lane) * places * FLOAT
        turn(own_grad, places, lanes, places, panel, panel_step)
        source = x + (n * groups + g) * channels * rows * columns * FLOAT
        source = pad_planes(source, channels, rows, columns, row_padding, column_padding, planes)
        for tile in range(first, last):
            height = SHORT + (min(TAPS, total - tile * TAPS) - 1) // STEP * STEP if vectors == 1 else TAPS
            taps_tile(
                source, row_stride * width, column_stride, offsets + tile * TAPS * INT64,
                row_bits + tile * out_rows * INT64, column_bits + tile * out_columns * INT64, panel,
                panel_step, out_rows, out_columns, scratch + (tile - first) * TAPS * LANES * FLOAT, sums_step,
                height, vectors,
            )  # fmt: skip
        for v in range(vectors if sums_bias else 0):
            lane_sums(places, panel + v * panel_step * FLOAT, bias_chains + v * LANES * FLOAT)
    turn_back(scratch, sums_step, end - begin, lanes, total, own)
    if sums_bias:
        turn_back(bias_chains, LANES, 1, lanes, 1, bias_sums)


@kernel("void(" + ", ".join(["intp"] * 26) + ")")
def _kernel_gradient(
    x: int, grad: int, weight_grad: int, bias_grad: int, images: int, groups: int, channels: int, outputs: int,
    rows: int, columns: int, row_padding: int, column_padding: int, row_stride: int, column_stride: int,
    out_rows: int, out_columns: int, total: int, tiles: int, offsets: int, row_bits: int, column_bits: int,
    blocks: int, panel: int, scratch: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tiles begin..end of taps, counted through all blocks."""
    for unit in range(begin // tiles, (end + tiles - 1) // tiles):
        first, last = max(begin - unit * tiles, 0), min(end - unit * tiles, tiles)
        _block_gradient(
            x, grad, weight_grad, bias_grad, images, groups, channels, outputs, rows, columns, row_padding,
            column_padding, row_stride, column_stride, out_rows, out_columns, total, tiles, offsets, row_bits,
            column_bits, blocks, unit, first, last, panel, scratch,
        )  # fmt: skip


def continue_kernel(
    x: Tensor, grad: Tensor, weight_grad: Tensor, bias_grad: Tensor | None, windows: tuple[Window, Window], groups: int
) -> None:
    """Continue the gradients of weight and bias in place, by contiguous x and grad of the output."""
    rows, columns = windows
    channels, outputs = x.shape[1] // groups, grad.shape[1] // groups
    taps = taps_of(rows, columns, channels)
    total, blocks = channels * rows.kernel * columns.kernel, -(-outputs // (WIDE * LANES))
    places = grad.shape[2] * grad.shape[3]
    arguments = (
        x.data_ptr(), grad.data_ptr(), weight_grad.data_ptr(), 0 if bias_grad is None else bias_grad.data_ptr(),
        len(x), groups, channels, outputs, rows.size, columns.size, rows.padding, columns.padding, rows.stride,
        columns.stride, rows.outputs, columns.outputs, total, taps.tiles, taps.offsets.data_ptr(),
        taps.row_bits.data_ptr(), taps.column_bits.data_ptr(), blocks,
    )  # fmt: skip
    plane = (rows.size + 2 * rows.padding) * (columns.size + 2 * columns.padding)
    panel_floats = WIDE * (places + 1) * LANES
    floats = panel_floats + WIDE * taps.tiles * TAPS * LANES + channels * plane

    units = groups * blocks * taps.tiles
    is_small = get_num_threads() == 1 or len(x) * places * units * TAPS * LANES < WORTH_THREADS
    calls = []
    for i, edges in enumerate([(0, units)] if is_small else shares(units, 1)):
        panel = scratch(floats, i)
        calls.append((_kernel_gradient, (*arguments, panel, panel + panel_floats * FLOAT, *edges)))
    run(calls)
