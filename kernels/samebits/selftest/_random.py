"""Cases of the random numbers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from samebits import random
from samebits.selftest._registry import covers
from samebits.selftest._values import Values

SITE = random.site("selftest")


@covers("random.uniform")
def _uniform(values: Values) -> Iterator[Tensor]:
    del values
    yield random.uniform((37, 451), -1.5, 0.25, seed=7, site=SITE, step=3, first_sample=11)
    yield random.uniform((5, 3, 2), 0.0, 1.0, seed=2**64 - 1, site=SITE)


@covers("random.normal")
def _normal(values: Values) -> Iterator[Tensor]:
    del values
    yield random.normal((37, 451), 0.02, seed=7, site=SITE, step=3, first_sample=2**32 - 37)
    yield random.normal((), 1.0, seed=0, site=0)
