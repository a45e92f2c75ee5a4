"""Finds the modules of a package of benchmarks, so that a new file is measured by lying there."""

from __future__ import annotations

import importlib
import pkgutil


def import_beside(package_name: str | None) -> None:
    """Import every module of a package but its `__main__`."""
    package = importlib.import_module(package_name or "")
    for found in pkgutil.iter_modules(package.__path__):
        if found.name != "__main__":
            importlib.import_module(f"{package.__name__}.{found.name}")
