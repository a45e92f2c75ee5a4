"""Which taps a convolution has at which outputs: tables for the tile in `_conv_tile.py`, made once for a geometry.

The outputs of a plane are numbered q = row * pitch + column, and a block of them is a tile's lanes. The sources are
planes of the same pitch, so that one tap of all lanes lies side by side, `offset` floats from q. A lane whose tap
would be padding has a mask of 0 there: the tap is absent from its chain. An input gradient is the same sweep over the
output's gradient, once for every residue class of rows and columns by the stride.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samebits._vectors import LANES, VECTORS

SPAN = LANES * VECTORS  # outputs of a tile
ENTRY = 3 + VECTORS  # offset, number of the tap in the kernel, whether all lanes have it, a mask for each vector


class Tap(NamedTuple):
    """One tap along one axis: output i reads element i + shift of phase `phase` of the source."""

    number: int
    phase: int
    shift: int
    extent: int
    """How many elements that phase has."""


class Axis(NamedTuple):
    """Rows or columns of a sweep."""

    size: int
    """Elements of the source."""
    outputs: int
    """They lie `step` apart from `first` on in a line of `length`."""
    first: int
    step: int
    length: int
    phases: int
    """The source's elements are dealt out to so many phases; tap k of output i then reads neighbours in one of them."""
    taps: tuple[Tap, ...]

    @property
    def dealt(self) -> int:
        """Elements of the longest phase."""
        return -(-self.size // self.phases)


class Window(NamedTuple):
    """A convolution along one axis."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def outputs(self) -> int:
        """Outputs along this axis; below 1 if the kernel is larger than the padded input."""
        return (self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1


def forward_axis(w: Window) -> Axis:
    """Output i reads element i * stride - padding + k * dilation, ascending k."""
    places = [(k, k * w.dilation - w.padding) for k in range(w.kernel)]
    taps = [Tap(k, p % w.stride, p // w.stride, -(-(w.size - p % w.stride) // w.stride)) for k, p in places]
    return Axis(w.size, w.outputs, 0, 1, w.outputs, w.stride, tuple(taps))


def backward_axes(w: Window) -> list[Axis]:
    """Element first + i * stride of the input met output (first + padding - k * dilation) / stride + i at tap k."""
    axes = []
    for first in range(min(w.stride, w.size)):
        count = -(-(w.size - first) // w.stride)
        places = [(k, first + w.padding - k * w.dilation) for k in range(w.kernel)]
        taps = [Tap(k, 0, p // w.stride, w.outputs) for k, p in places if p % w.stride == 0]
        axes.append(Axis(w.outputs, count, first, w.stride, w.size, 1, tuple(taps)))
    return axes


class Sweep(NamedTuple):
    """One sweep over the outputs of a plane."""

    rows: Axis
    columns: Axis
    pitch: int
    packed: bool
    """Whether the source's planes must be copied first: into phases, or to a larger pitch."""
    tiles: int
    width: int
    """Entries that the table has for each tile; counts says how many of them are used."""
    table: Tensor
    counts: Tensor
    places: Tensor
    """int64: the first row and column of the outputs, their steps, and the length of the lines that they lie in."""

    @property
    def channel(self) -> int:
        """Floats from one channel of the source to the next."""
        return self.rows.phases * self.columns.phases * self.rows.dealt * self.pitch

    @property
    def dense(self) -> bool:
        """Whether the outputs lie in memory as they are numbered."""
        return self.pitch == self.columns.outputs == self.columns.length and self.rows.step == 1


@lru_cache(maxsize=256)
def sweep(rows: Axis, columns: Axis, kernel_columns: int) -> Sweep:
    """The tables of a sweep."""
    pitch = max(columns.dealt, columns.outputs)
    packed = pitch != columns.size or rows.phases * columns.phases != 1
    tiles = -(-((rows.outputs - 1) * pitch + columns.outputs) // SPAN)
    width = max(1, len(rows.taps) * len(columns.taps))
    table, counts = np.zeros((tiles, width, ENTRY), np.int64), np.zeros(tiles, np.int64)
    for r in rows.taps:
        for c in columns.taps:
            place = (r.phase * columns.phases + c.phase) * rows.dealt * pitch + r.shift * pitch + c.shift
            bits = _present(rows, columns, r, c, pitch, tiles)
            for tile in bits.any(axis=1).nonzero()[0]:
                full = (bits[tile] == (1 << LANES) - 1).all()
                table[tile, counts[tile]] = (place, r.number * kernel_columns + c.number, full, *bits[tile])
                counts[tile] += 1
    places = torch.tensor([rows.first, columns.first, rows.step, columns.step, columns.length])
    tables = (torch.from_numpy(table), torch.from_numpy(counts), places)
    return Sweep(rows, columns, pitch, packed, tiles, width, *tables)


def _present(rows: Axis, columns: Axis, r: Tap, c: Tap, pitch: int, tiles: int) -> Any:
    """The masks of one tap, [tiles, VECTORS]: whether output q has it.

    Lanes that are no outputs have it wherever it is an element of the source, so that fewer masks are needed; and so
    have the lanes of vectors that hold no output at all, which the last tile does not compute.
    """
    q = np.arange(tiles * SPAN)
    i, j = q // pitch, q % pitch
    row, column, place = i + r.shift, j + c.shift, q + r.shift * pitch + c.shift
    inside = (row >= 0) & (row < r.extent) & (column >= 0) & (column < c.extent)
    element = (place >= 0) & (place // pitch < r.extent) & (place % pitch < c.extent)
    last = (rows.outputs - 1) * pitch + columns.outputs
    unused = q // LANES * LANES >= last
    lanes = np.where((i < rows.outputs) & (j < columns.outputs), inside, element | unused).reshape(
        tiles, VECTORS, LANES
    )
    return (lanes.astype(np.int64) << np.arange(LANES)).sum(axis=-1)
