"""Compiles every kernel anew and prints what it is made of: where binary64 is, and what it calls from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import samebits
from samebits._compile import KERNELS, ROUTINES

UNPACKING = re.compile(r"@PyFloat_AsDouble|fptrunc double %\.\d+ to float$")  # a float argument arrives as Python's own


def wide_names(dispatcher: Any) -> Iterator[str]:
    """The variables of type float64 in a dispatcher's typed code."""
    for compiled in dispatcher.overloads.values():
        if compiled.type_annotation is None:
            raise RuntimeError("the code came from a cache, which has no types")
        for name, kind in compiled.type_annotation.typemap.items():
            if "float64" in str(kind) or "complex" in str(kind):
                yield f"{name}: {kind}"


def lines(dispatcher: Any) -> Iterator[str]:
    """The LLVM code of a dispatcher, in which functions written as LLVM code stand too."""
    for compiled in dispatcher.overloads.values():
        yield from compiled.library.get_llvm_str().splitlines()


def wide_lines(dispatcher: Any) -> list[str]:
    """Where the LLVM code has binary64, other than to unpack arguments."""
    return [line for line in lines(dispatcher) if re.search(r"\bdouble\b", line) and not UNPACKING.search(line)]


def called(dispatcher: Any) -> list[str]:
    """The functions that the LLVM code declares, and expects from elsewhere."""
    found = (re.search(r'^declare .*?@"?([^"(]+)', line) for line in lines(dispatcher))
    return sorted({match[1] for match in found if match})


if __name__ == "__main__":
    samebits.warm()
    kernels = {kernel.name: (kernel.dispatcher, kernel.binary64) for kernel in KERNELS.values()}
    routines = {f"{f.py_func.__module__}.{f.py_func.__name__}": (f, wide) for f, wide in ROUTINES.items()}
    every = kernels | routines
    report = {
        "typed": {name: list(wide_names(f)) for name, (f, _) in every.items()},
        "says": [name for name, (_, wide) in every.items() if wide],
        "wide": {name: wide_lines(f) for name, (f, wide) in kernels.items() if not wide},
        "called": {name: called(f) for name, (f, _) in kernels.items()},
    }
    print(json.dumps(report))  # noqa: T201
