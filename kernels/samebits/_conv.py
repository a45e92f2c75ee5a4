"""Sweeps of a convolution: results by tiles of planes, forward and for the gradient of the input."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from samebits._compile import kernel, routine
from samebits._conv_tile import conv_tile
from samebits._intrinsics import load32, load_i64, store32
from samebits._planes import ENTRY, SPAN, Sweep
from samebits._threads import WORTH_SHARING, get_num_threads, run, scratch, shares
from samebits._vectors import LANES, ROWS

FLOAT, INT64 = 4, 8  # bytes
ZERO, MINUS_ZERO = np.float32(0.0), np.float32(-0.0)
WORTH_THREADS = WORTH_SHARING >> 2  # multiply-adds; they are slower here than in a product


@routine()
def deal(
    plane: int, rows: int, columns: int, row_phases: int, column_phases: int, dealt: int, pitch: int, target: int
) -> None:
    """Copy a plane [rows, columns] phase by phase, rows `pitch` floats apart; what is no element becomes +0."""
    for place in range(row_phases * column_phases * dealt * pitch):
        store32(target, place, ZERO)
    for i in range(rows):
        line = plane + i * columns * FLOAT
        first = (i % row_phases) * column_phases * dealt + i // row_phases
        for phase in range(column_phases):
            goal = target + (first + phase * dealt) * pitch * FLOAT
            for j in range((columns - phase + column_phases - 1) // column_phases):
                store32(goal, j, load32(line, j * column_phases + phase))


@routine()
def place_lanes(
    lanes: int, rows: int, q: int, pitch: int, counts: tuple[int, int], firsts: tuple[int, int],
    steps: tuple[int, int], length: int, out: int, out_plane: int,
) -> None:  # fmt: skip
    """Store SPAN lanes of each row of a tile, outputs q and on of their planes, where the results belong."""
    n = 0
    while n < SPAN and (q + n) // pitch < counts[0]:
        i, j = (q + n) // pitch, (q + n) % pitch
        goal = (firsts[0] + i * steps[0]) * length + firsts[1] + j * steps[1]
        for r in range(rows):
            for k in range(min(SPAN - n, counts[1] - j)):
                store32(out, r * out_plane + goal + k * steps[1], load32(lanes, r * SPAN + n + k))
        n += pitch - j


@kernel("void(" + ", ".join(["intp"] * 33) + ")")
def _sweep(
    source: int, source_image: int, source_plane: int, weight: int, w_row: int, w_channel: int, w_group: int,
    bias: int, bias_step: int, out: int, out_plane: int, groups: int, rows: int, channels: int,
    table: int, counts: int, tiles: int, width: int, channel: int, packed: int, dense: int, size0: int, size1: int,
    phases0: int, phases1: int, dealt: int, pitch: int, count0: int, count1: int, places: int,
    scratch: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tiles begin..end, counted through all images. The scratch holds a tile, a row of -0, and the dealt planes."""
    planes, neutral = scratch + (ROWS + 1) * SPAN * FLOAT, scratch + ROWS * SPAN * FLOAT
    for i in range(ROWS):
        store32(neutral, i, MINUS_ZERO)
    outputs = (count0 - 1) * pitch + count1
    blocks = (rows + ROWS - 1) // ROWS
    for unit in range(begin, end):
        n, b = unit // tiles, unit % tiles
        image, q = source + n * source_image * FLOAT, b * SPAN
        if packed:
            if (unit == begin) | (b == 0):
                for c in range(groups * channels):
                    plane, goal = image + c * source_plane * FLOAT, planes + c * channel * FLOAT
                    deal(plane, size0, size1, phases0, phases1, dealt, pitch, goal)
            image = planes
        span = min(SPAN, outputs - q)
        vectors = (span + LANES - 1) // LANES
        entries, taps = table + b * width * ENTRY * INT64, load_i64(counts, b)
        for g in range(groups):
            for block in range(blocks):
                r = block * rows // blocks
                height, first = (block + 1) * rows // blocks - r, g * rows + r
                goal = out + (n * groups * rows + first) * out_plane * FLOAT
                addend = bias + first * bias_step * FLOAT if bias_step else neutral
                c, c_row, lanes = scratch, SPAN, LANES
                if dense:
                    c, c_row, lanes = goal + q * FLOAT, out_plane, span - (vectors - 1) * LANES
                conv_tile(
                    image + (g * channels * channel + q) * FLOAT, channel,
                    weight + (g * w_group + r * w_row) * FLOAT, w_row, w_channel, entries, taps, channels,
                    addend, c, c_row, height, vectors, lanes,
                )  # fmt: skip
                if not dense:
                    firsts = (load_i64(places, 0), load_i64(places, 1))
                    steps = (load_i64(places, 2), load_i64(places, 3))
                    length = load_i64(places, 4)
                    place_lanes(scratch, height, q, pitch, (count0, count1), firsts, steps, length, goal, out_plane)


def sweep_planes(
    sweep: Sweep, source: Tensor, weight: Tensor, strides: tuple[int, int, int], groups: int, bias: Tensor | None,
    out: Tensor,
) -> None:  # fmt: skip
    """out[n, r] = chains over channels and taps of source[n], for contiguous source and out [images, planes, h, w].

    strides: floats of the weight from one row (a plane of out) to the next, from channel to channel of the source, and
    from group to group.
    """
    images, rows, channels = len(out), out.shape[1] // groups, source.shape[1] // groups
    plane, out_plane = source.shape[2] * source.shape[3], out.shape[2] * out.shape[3]
    r, c = sweep.rows, sweep.columns
    arguments = (
        source.data_ptr(), source.shape[1] * plane, plane, weight.data_ptr(), *strides,
        0 if bias is None else bias.data_ptr(), int(bias is not None), out.data_ptr(), out_plane,
        groups, rows, channels, sweep.table.data_ptr(), sweep.counts.data_ptr(), sweep.tiles, sweep.width,
        sweep.channel, int(sweep.packed), int(sweep.dense), r.size, c.size, r.phases, c.phases, r.dealt, sweep.pitch,
        r.outputs, c.outputs, sweep.places.data_ptr(),
    )  # fmt: skip
    floats = (ROWS + 1) * SPAN + (source.shape[1] * sweep.channel if sweep.packed else 0)

    units = images * sweep.tiles
    if get_num_threads() == 1 or units * SPAN * rows * groups * channels * sweep.width < WORTH_THREADS:
        _sweep(*arguments, scratch(floats), 0, units)
    else:
        run([(_sweep, (*arguments, scratch(floats, i), *edges)) for i, edges in enumerate(shares(units, 1))])
