"""The golden digests on other processors: as compiled for AVX2, for SSE without fma, and for aarch64."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from samebits import _cache, selftest

KERNELS = Path(_cache.__file__).parents[1]
LIMIT_S = 1500  # compiling everything anew takes a minute, unless others want the machine too
AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"}
SSE = {
    "NUMBA_CPU_NAME": "nehalem",
    "NUMBA_CPU_FEATURES": "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt",
    "SAMEBITS_SLOW_FMA": "1",
}


def runs_here(*features: str) -> bool:
    """Whether this is an x86-64 with these."""
    return platform.machine() == "x86_64" and set(features) <= set(_cache.target()[2].split(","))


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize(
    "environment",
    [
        pytest.param(AVX2, id="avx2", marks=pytest.mark.skipif(not runs_here("+avx2", "+fma"), reason="no AVX2 here")),
        pytest.param(SSE, id="sse", marks=pytest.mark.skipif(not runs_here("+sse4.2"), reason="no SSE4.2 here")),
    ],
)
def test_another_processor_gives_the_golden_digests(
    environment: dict[str, str], threads: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.getbasetemp() / environment["NUMBA_CPU_NAME"]  # the second number of threads finds it warm
    done = subprocess.run(
        [sys.executable, "-m", "samebits.selftest", "--json", "--threads", threads],
        env={**os.environ, **environment, "PYTHONPATH": str(KERNELS), "SAMEBITS_CACHE_DIR": str(cache)},
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == selftest.golden().digest


def test_without_debian_the_proof_for_aarch64_is_skipped_with_a_reason(tmp_path: Path) -> None:
    for tool in ("sh", "dirname"):
        (tmp_path / tool).symlink_to(f"/bin/{tool}" if Path(f"/bin/{tool}").exists() else f"/usr/bin/{tool}")
    done = subprocess.run(
        [tmp_path / "sh", KERNELS / "test_aarch64.sh"],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "skipped: this is no Debian: there is no apt-get\n"
