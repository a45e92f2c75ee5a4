"""Cases of the operators on images: padding, strides, dilation, groups, more places and channels than a tile has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from samebits.batch_norm import batch_norm
from samebits.conv2d import conv2d
from samebits.pool import avg_pool2d, max_pool2d
from samebits.selftest._registry import both, covers
from samebits.selftest._values import Values


@covers("conv2d")
def _conv2d(values: Values) -> Iterator[Tensor]:
    for shape, kernel, options in (
        ((3, 2, 9, 17), (19, 2, 5, 5), {"padding": 2}),
        ((2, 4, 11, 7), (34, 2, 3, 2), {"stride": (2, 3), "padding": (1, 2), "groups": 2}),
        ((2, 3, 8, 9), (5, 3, 3, 3), {"dilation": 2}),
        ((2, 13, 7, 5), (9, 13, 1, 1), {}),
    ):
        convolved = partial(conv2d, **options)
        yield from both(values, convolved, values(*shape), values(*kernel), values(kernel[0]), chained=True)
    strewn = (values.strewn(2, 2, 6, 7), values.strewn(3, 2, 3, 3), values.strewn(3))
    yield from both(values, partial(conv2d, padding=1), *strewn)


@covers("max_pool2d")
def _max_pool2d(values: Values) -> Iterator[Tensor]:
    yield from both(values, partial(max_pool2d, kernel_size=2), values(3, 5, 14, 15))
    yield from both(values, partial(max_pool2d, kernel_size=3, stride=2, padding=1), values.strewn(2, 3, 9, 8))


@covers("avg_pool2d")
def _avg_pool2d(values: Values) -> Iterator[Tensor]:
    yield from both(values, partial(avg_pool2d, kernel_size=2), values(3, 5, 14, 15))
    yield from both(values, partial(avg_pool2d, kernel_size=3, stride=2, padding=1), values.strewn(2, 3, 9, 8))


@covers("batch_norm")
def _batch_norm(values: Values) -> Iterator[Tensor]:
    """By the batch's statistics, which move the running ones on, then by the running ones."""
    for x in (values(3, 19, 9, 16), values(37, 5), values.strewn(5, 3, 2, 2)):
        channels = x.shape[1]
        running = (values(channels), values.positive(channels))
        for training in (True, False):
            normed = partial(_normed, running=running, training=training)
            yield from both(values, normed, x.detach(), values(channels), values(channels), chained=True)
            yield from (statistic.clone() for statistic in running)


def _normed(x: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], training: bool) -> Tensor:
    return batch_norm(x, *running, weight, bias, training)
