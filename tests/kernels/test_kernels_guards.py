"""Guards: no stale code, the same bits on another processor, no arithmetic but IEEE-754's."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import kernels_program
import pytest
import samebits
import torch
from samebits import _cache

LIMIT_S = 280  # compiling everything takes 15 s, unless others want the machine too
HERE = Path(__file__).parent
PACKAGE = Path(_cache.__file__).parent


def run_python(*arguments: str, **environment: str) -> str:
    """The standard output of another interpreter that finds this package."""
    search = os.pathsep.join([environment.pop("SOURCES", str(PACKAGE.parent)), str(HERE)])
    ended = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, "PYTHONPATH": search, **environment},
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def haswell_runs_here() -> bool:
    if platform.machine() != "x86_64":
        return False
    flags = set(_cache.target()[2].split(","))
    return {"+avx2", "+fma"} <= flags


@pytest.mark.skipif(not haswell_runs_here(), reason="this processor cannot run AVX2 code")
@pytest.mark.timeout(300)
def test_another_instruction_set_gives_the_same_bits() -> None:
    other = run_python(str(HERE / "kernels_program.py"), NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx,+avx2,+fma")
    assert json.loads(other) == kernels_program.digests()


@pytest.mark.timeout(300)
def test_another_tile_and_unoptimised_code_give_the_same_bits() -> None:
    other = run_python(str(HERE / "kernels_program.py"), "few", SAMEBITS_TILE="4,8,3", NUMBA_OPT="0")
    assert json.loads(other) == kernels_program.digests(few=True)


def test_an_x86_without_fused_multiply_add_is_refused() -> None:
    _cache.refuse_without_fma("x86_64-unknown-linux-gnu", "+avx2,+fma,+sse2")
    _cache.refuse_without_fma("aarch64-unknown-linux-gnu", "+neon")
    with pytest.raises(RuntimeError, match="no fused multiply-add"):
        _cache.refuse_without_fma("x86_64-unknown-linux-gnu", "+avx2,-fma,+sse2")


def test_who_wants_slow_products_must_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMEBITS_SLOW_FMA", "0")
    with pytest.raises(RuntimeError, match="SAMEBITS_SLOW_FMA=1 computes without"):
        _cache.refuse_without_fma("x86_64-unknown-linux-gnu", "+sse2")
    monkeypatch.setenv("SAMEBITS_SLOW_FMA", "1")
    _cache.refuse_without_fma("x86_64-unknown-linux-gnu", "+sse2")


def test_every_source_shapes_the_name_of_the_cache(tmp_path: Path) -> None:
    copies = [tmp_path / path.relative_to(PACKAGE) for path in _cache.source_files()]
    for source, copy in zip(_cache.source_files(), copies, strict=True):
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(source, copy)
    before = _cache.fingerprint(copies)
    assert before == _cache.fingerprint(_cache.source_files())
    for copy in copies:
        content = copy.read_bytes()
        copy.write_bytes(content + b"# more\n")
        assert _cache.fingerprint(copies) != before
        copy.write_bytes(content)
    assert _cache.fingerprint(copies) == before


@pytest.mark.timeout(300)
def test_a_changed_source_is_compiled_anew(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(PACKAGE, sources / "samebits", ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import samebits, torch; x = torch.ones(1, requires_grad=True); y = samebits.fork(x, 2); "
        "print(torch.autograd.grad(y[0] + y[1], x)[0].item())"
    )
    places = {"SOURCES": str(sources), "SAMEBITS_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    assert run_python("-c", program, **places) == "2.0\n"
    shared = sources / "samebits" / "_intrinsics.py"
    shared.write_text(shared.read_text().replace("b.store(args[2],", "b.store(b.fneg(args[2]),"))
    assert run_python("-c", program, **places) != "2.0\n"


def test_flush_to_zero_is_refused() -> None:
    x, w = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3)
    out = samebits.linear(x, w)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode")
    try:
        with pytest.raises(RuntimeError, match="subnormal numbers are flushed to zero"):
            samebits.canary()
        with pytest.raises(RuntimeError, match="subnormal numbers are flushed to zero"):
            samebits.linear(x, w)
        with pytest.raises(RuntimeError, match="subnormal numbers are flushed to zero"):
            torch.autograd.backward(out.sum())
        with pytest.raises(RuntimeError, match="subnormal numbers are flushed to zero"):
            samebits.warm()
    finally:
        torch.set_flush_denormal(False)
    samebits.canary()


@pytest.mark.timeout(300)
def test_warm_starts_no_threads_and_loads_everything() -> None:
    out = run_python(
        "-c",
        "import threading, samebits; samebits.warm(); from samebits._compile import KERNELS; "
        "print(threading.active_count(), all(k.is_loaded for k in KERNELS.values()))",
    )
    assert out == "1 True\n"


def test_public_names_are_all_there() -> None:
    assert samebits.PROFILE == "samebits-1"
    assert all(hasattr(samebits, name) for name in samebits.__all__)
    assert threading.current_thread() is threading.main_thread()
