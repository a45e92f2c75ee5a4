"""What compiled kernels are made of: no hidden binary64, no library's functions, and no way round the canary."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samebits import _cache

HERE = Path(__file__).parent
SOURCES = Path(_cache.__file__).parent
WIDE = ("samebits._elementary.",)  # the only functions whose own code may be in binary64: each rounds once at its end
# sqrt is exact everywhere. The rest belongs to the call from Python, or is an instruction.
FROM_OUTSIDE = re.compile(
    r"_?Py[A-Z_]\w*|NRT_\w+|numba_\w+|sqrtf?|"
    r"llvm\.(fma|fabs|sqrt|masked\.(load|store|gather|scatter)|vector\.(insert|extract)|"
    r"x86\.sse2\.pause|aarch64\.isb|experimental\.noalias|mem(cpy|set|move)|[su](min|max)|lifetime|assume|prefetch|ct(lz|tz|pop))\b.*"
)
# What may be read from the host: what is part of the cache's name, and where the cache lies.
ENVIRONMENT = {"SAMEBITS_TILE", "SAMEBITS_CACHE_DIR", "XDG_CACHE_HOME", "items"}
ENVIRONMENT |= {"SAMEBITS_SLOW_FMA"}  # permits, and shapes nothing
HOST = {"cpu_count", "environb", "getenv", "sched_getaffinity", "sysconf", "uname"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of `typed_code`, from a process that compiles everything anew."""
    search = os.pathsep.join([str(SOURCES.parent), str(HERE)])
    environment = {"PYTHONPATH": search, "SAMEBITS_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "NUMBA_OPT": "0"}
    ended = subprocess.run(
        [sys.executable, str(HERE / "typed_code.py")], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


@pytest.mark.timeout(300)
def test_binary64_is_only_where_it_is_listed(compiled: dict[str, Any]) -> None:
    assert {"gemm.gemm", "attention.backward", "samebits._gemm.product", "bfloat16._round"} <= set(compiled["typed"])
    wide = {name: kinds for name, kinds in compiled["typed"].items() if kinds}
    assert "samebits._elementary.exp32" in wide
    assert {name: kinds for name, kinds in wide.items() if not name.startswith(WIDE)} == {}
    assert set(wide) <= set(compiled["says"])


@pytest.mark.timeout(300)
def test_nor_is_it_in_what_is_written_as_llvm_code(compiled: dict[str, Any]) -> None:
    assert "gemm.gemm" in compiled["wide"]
    assert {name: lines for name, lines in compiled["wide"].items() if lines} == {}


@pytest.mark.timeout(300)
def test_kernels_call_no_library(compiled: dict[str, Any]) -> None:
    strange = {
        name: [f for f in called if not FROM_OUTSIDE.fullmatch(f)] for name, called in compiled["called"].items()
    }
    assert {name: functions for name, functions in strange.items() if functions} == {}


def attributes(path: Path) -> Iterator[ast.Attribute]:
    """Every `a.b` of a source."""
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute))


def test_only_the_canary_and_the_waiting_of_threads_are_called_unguarded() -> None:
    inside = {"unguarded", "dispatcher", "entry_point", "overloads"}
    users = {path.name for path in SOURCES.rglob("*.py") for node in attributes(path) if node.attr in inside}
    assert users == {"_canary.py", "_compile.py", "_threads.py"}
    for name in ("_canary.py", "_threads.py"):
        assert [way for way in inside if f".{way}" in (SOURCES / name).read_text()] == ["unguarded"]
    unguarded = re.findall(r"([\w.]+)\.unguarded", (SOURCES / "_threads.py").read_text())
    assert sorted(unguarded) == ["_hand_out.dismiss", "_hand_out.serve"], "these compute nothing"


@pytest.mark.parametrize("path", _cache.source_files(), ids=lambda path: str(path.relative_to(SOURCES)))
def test_kernels_take_nothing_from_the_host_but_what_names_the_cache(path: Path) -> None:
    tree, text = ast.parse(path.read_text()), path.read_text()
    assert [node.attr for node in attributes(path) if node.attr in HOST] == []
    assert {node.attr for node in attributes(path) if ast.unparse(node.value) == "platform"} <= {"python_version"}
    assert "/sys/" not in text
    assert "/proc/" not in text
    read = [node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("get", "items")]
    of_environment = [value for value in read if isinstance(value, ast.Attribute) and value.attr == "environ"]
    assert len(of_environment) == text.count("environ"), "read the environment by os.environ.get, by a written name"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.value in of_environment:
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)] or ["items"]
            assert set(names) <= ENVIRONMENT


@pytest.mark.parametrize("setting", ["SAMEBITS_TILE", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT"])
def test_what_is_taken_from_the_environment_names_the_cache(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(setting, raising=False)
    names = {_cache.fingerprint()}
    for value in ("1", "2"):
        monkeypatch.setenv(setting, value)
        names.add(_cache.fingerprint())
    assert len(names) == 3
