"""A kernel that many threads meet at once is compiled once, and all of them get its answer."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from samebits import _cache, _compile
from samebits._compile import KERNELS, Kernel, kernel

NUM_THREADS = 8


def test_threads_that_race_to_a_kernel_all_get_its_answer() -> None:
    @kernel("int64(int64)")
    def doubled_for_this_test(x: int) -> int:
        return x + x

    start = threading.Barrier(NUM_THREADS)

    def call(x: int) -> tuple[int, int]:
        start.wait(30)
        return doubled_for_this_test(x), doubled_for_this_test.address()

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        answers = list(threads.map(call, range(NUM_THREADS)))
    assert [answer for answer, _ in answers] == [2 * x for x in range(NUM_THREADS)]
    assert len({address for _, address in answers}) == 1


def test_the_first_compilation_says_what_it_is_doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_cache, "directory", lambda: tmp_path)  # an empty cache
    monkeypatch.setattr(_compile, "_told", [])

    def tripled(x: int) -> int:
        return x + x + x

    def first_lines(name: str) -> list[str]:
        tripled.__name__ = name
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert Kernel(tripled, "int64(int64)", binary64=False)(2) == 6
        return caplog.messages

    (line,) = first_lines("first_for_this_test")
    assert line.startswith(f"samebits compiles for {_cache.target()[1]}: {len(KERNELS)} of {len(KERNELS)} kernels")
    assert first_lines("second_for_this_test") == [], "once is enough"
    monkeypatch.setattr(_compile, "_told", [])
    (tmp_path / f"{Path(__file__).stem}.third_for_this_test.kernel").write_bytes(b"")
    assert all("compiles for" not in line for line in first_lines("third_for_this_test")), "it is in the cache"
