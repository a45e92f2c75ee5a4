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
    "np": """arange array asarray ascontiguousarray bool broadcast_to concatenate empty errstate float32 float64
        full inf int32 int64 isfinite isnan multiply ndarray ndindex nextafter sqrt take uint16 uint32
        uint64 where zeros zeros_like""",
    "torch": """Size Tensor _C autograd bfloat16 bool broadcast_shapes broadcast_tensors dtype empty empty_like
        enable_grad float16 float32 float64 from_numpy int16 int32 int64 int8 is_grad_enabled isnan no_grad
        optim strided tensor uint8 zeros""",
}
ALLOWED = {module: set(names.split()) for module, names in WRITTEN.items()}
ALLOWED["numpy"] = ALLOWED["np"]
PRIVATE = {"_will_engine_execute_node"}  # of torch._C
# Of arrays and tensors: what a library computes in an order or by functions of its own.
COMPUTING = """
    addbmm addcdiv addcmul addmm addmv addr baddbmm bmm cos cosh cumprod cumsum dist dot erf erfc erfinv exp
    exp2 expm1 hypot inner lerp log log10 log1p log2 log_softmax logcumsumexp logsumexp matmul mean mm mv norm
    outer pow prod rsqrt sigmoid sin sinc sinh softmax sqrt std sum tan tanh trace var vdot
"""
METHODS = set(COMPUTING.split())
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
    tree = ast.parse(source)
    modules = modules_of(tree)
    for node in ast.walk(tree):
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
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch._C" and node.attr not in PRIVATE:
            yield f"{line}: torch._C.{node.attr}"
        yield from imports(node, line)
        yield from methods(node, line, modules)


def methods(node: ast.AST, line: int, modules: set[str]) -> Iterator[str]:
    """Products, sums and functions that NumPy or torch would compute: by a method, or by `@`. Integers are exact.

    A layer's own parts (self.norm) are layers.
    """
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.MatMult):
        yield f"{line}: @"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner, name = ast.unparse(node.func.value), node.func.attr.removesuffix("_")
        if name in METHODS and owner not in {*modules, "self"} and "np.int64" not in owner:
            yield f"{line}: {owner}.{node.func.attr}()"


def modules_of(tree: ast.AST) -> set[str]:
    """The names of what a source imports: such a module's functions are judged where they are written."""
    imported = (node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)))
    return {*ALLOWED, *(name.asname or name.name for node in imported for name in node.names)}


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
import math as m; import scipy.special; from numpy import random; numpy.exp(x); a @ b; a @= b
x.sum(); x.mean(dim=0); x.exp_(); torch.Tensor.exp(x); torch._C._nn.gelu(x); np.zeros(3).sum(); (a * b).sum()"""
GOOD = ["y = 2.0 ** -24", "y = 2 ** 10", "math.sqrt(x)", "import math", "np.float32(1)", "from torch import Tensor"]
GOOD += ["x.astype(np.int64).sum()", "from samebits import elementary\nelementary.exp(x)"]


@pytest.mark.parametrize("bad", [line.strip() for line in BAD.replace("\n", ";").split(";")])
def test_the_lint_finds(bad: str) -> None:
    assert list(findings(bad))


@pytest.mark.parametrize("good", GOOD)
def test_the_lint_lets_pass(good: str) -> None:
    assert list(findings(good)) == []
