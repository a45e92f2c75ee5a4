"""Compiles every kernel anew and prints those whose typed code holds binary64 without their saying so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import samebits
from samebits._compile import KERNELS, ROUTINES


def wide_names(dispatcher: Any) -> Iterator[str]:
    """The variables of type float64 in a dispatcher's typed code."""
    for compiled in dispatcher.overloads.values():
        if compiled.type_annotation is None:
            raise RuntimeError("the code came from a cache, which has no types")
        for name, kind in compiled.type_annotation.typemap.items():
            if "float64" in str(kind) or "complex" in str(kind):
                yield f"{name}: {kind}"


if __name__ == "__main__":
    samebits.warm()
    all_of_them = {kernel.name: (kernel.dispatcher, kernel.binary64) for kernel in KERNELS.values()}
    all_of_them |= {f.py_func.__module__ + "." + f.py_func.__name__: (f, wide) for f, wide in ROUTINES.items()}
    checked = {name: list(wide_names(f)) for name, (f, wide) in all_of_them.items() if not wide}
    print(json.dumps(checked))  # noqa: T201
