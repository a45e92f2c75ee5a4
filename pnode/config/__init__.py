"""Configuration: composed by Hydra, checked by pydantic, refused in one line."""

from __future__ import annotations

from pnode.config.compose import load
from pnode.config.keys import Key, keys
from pnode.config.schema import Settings

__all__ = ["Key", "Settings", "keys", "load"]
