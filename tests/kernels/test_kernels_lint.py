"""The host computes too: nothing in samebits may use a function whose result differs between machines.

Allowed is what is listed, so that a new function is looked at before it is used.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "kernels" / "samebits"
EXEMPT = {
    SOURCES / "reference" / "elementary.py",  # asks the C library for a guess, and mpmath in doubt
    SOURCES / "_rounded.py",  # asks mpmath
    SOURCES / "_angles.py",  # asks mpmath
    SOURCES / "reference" / "rotary.py",  # asks mpmath
    *(SOURCES / "convert").glob("*.py"),  # names torch's operators, to replace them; test_kernels_convert.py sees to it
}
FILES = sorted(path for path in SOURCES.rglob("*.py") if path not in EXEMPT)

WRITTEN = {
    "math": "copysign inf isfinite ldexp nan nextafter pi sqrt",
    "np": """ascontiguousarray concatenate
        arange array asarray bool empty errstate float32 float64 full inf int32 int64 isfinite isnan multiply
        ndarray ndindex nextafter sqrt uint16 uint32 uint64 where zeros zeros_like""",
    "torch": """Size Tensor _C autograd bfloat16 bool dtype empty empty_like enable_grad float16 float32 float64
        from_numpy int16 int32 int64 int8 is_grad_enabled isnan no_grad optim strided tensor uint8 zeros""",
}
ALLOWED = {module: set(names.split()) for module, names in WRITTEN.items()}
LAYERS = {"Module", "ModuleList", "Parameter", "Sequential"}  # of torch.nn: what holds parameters and computes nothing
BUILTINS = {"sum", "pow", "divmod"}
MODULES = {"cmath", "random", "scipy", "statistics", "mpmath", "secrets"}
ALIASES = {"numpy": "np", "math": "math", "torch": "torch"}


def exact_power(node: ast.BinOp) -> bool:
    """2**n for a written integer n is exact anywhere."""
    exponent = node.right.operand if isinstance(node.right, ast.UnaryOp) else node.right
    if not (isinstance(node.left, ast.Constant) and isinstance(exponent, ast.Constant)):
        return False
    return node.left.value == 2 and isinstance(exponent.value, int)


def findings(source: str) -> Iterator[str]:
    """What is not allowed, as line and reason."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not exact_power(node):
            yield f"{line}: **"
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Pow):
            yield f"{line}: **="
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
            yield f"{line}: {node.func.id}()"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = node.value.id
            if module in ALLOWED and node.attr not in ALLOWED[module]:
                yield f"{line}: {module}.{node.attr}"
        yield from imports(node, line)


def imports(node: ast.AST, line: int) -> Iterator[str]:
    """Modules that are banned, names out of guarded modules, and aliases that would hide a guarded module."""
    if isinstance(node, ast.Import):
        for name in node.names:
            top = name.name.partition(".")[0]
            if top in MODULES or (top in ALIASES and name.asname not in (None, ALIASES[top])):
                yield f"{line}: import {name.name}"
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        top = node.module.partition(".")[0]
        guarded = node.module in ALIASES and any(
            name.name not in ALLOWED[ALIASES[node.module]] and not name.name[0].isupper() for name in node.names
        )
        layers = node.module.startswith("torch.nn") and any(name.name not in LAYERS for name in node.names)
        if top in MODULES or guarded or layers:
            yield f"{line}: from {node.module} import"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_only_what_is_the_same_everywhere(path: Path) -> None:
    assert list(findings(path.read_text())) == []


BAD = """y = x ** 2; y = 2 ** x; y **= 2; y = 10.0 ** -3; sum(xs); pow(x, 2); math.exp(x); math.fsum(xs); np.exp(x)
np.sum(x); np.random.rand(); torch.exp(x); torch.rand(2); torch.matmul(a, b); import random; import numpy as n
from math import exp; from random import gauss; from torch.nn import Linear
from torch.nn.functional import relu; torch.nn.functional.relu(x)
import math as m; import scipy.special; from numpy import random"""
GOOD = ["y = 2.0 ** -24", "y = 2 ** 10", "math.sqrt(x)", "import math", "np.float32(1)", "from torch import Tensor"]


@pytest.mark.parametrize("bad", [line.strip() for line in BAD.replace("\n", ";").split(";")])
def test_the_lint_finds(bad: str) -> None:
    assert list(findings(bad))


@pytest.mark.parametrize("good", GOOD)
def test_the_lint_lets_pass(good: str) -> None:
    assert list(findings(good)) == []
