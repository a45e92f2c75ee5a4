"""Fixtures that several tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import samebits
from samebits import _split


@pytest.fixture
def shared_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, and no work so small that one of them would do it alone."""
    monkeypatch.setattr(_split, "GRAIN", 1)
    samebits.set_num_threads(2)
    yield
    samebits.set_num_threads(1)
