"""Operators for torch tensors whose results have the same bits on every machine. See README.md for the contract."""

from __future__ import annotations

PROFILE = "samebits-1"

__all__ = ["PROFILE"]
