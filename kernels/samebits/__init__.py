"""Operators for torch tensors whose results have the same bits on every machine. See README.md for the contract."""

from __future__ import annotations

from samebits._canary import canary
from samebits._threads import get_num_threads, set_num_threads
from samebits._warm import warm
from samebits.matmul import linear, matmul

PROFILE = "samebits-1"

__all__ = [
    "PROFILE",
    "canary",
    "get_num_threads",
    "linear",
    "matmul",
    "set_num_threads",
    "warm",
]
