"""Compile or load every kernel at once, so that a process forked afterwards finds them ready."""

from __future__ import annotations

from samebits._canary import canary
from samebits._compile import KERNELS


def warm() -> None:
    """Compile every kernel or load it from the cache, and hold this thread to the canary; starts no threads."""
    for kernel in list(KERNELS.values()):
        kernel.load()
    canary()
