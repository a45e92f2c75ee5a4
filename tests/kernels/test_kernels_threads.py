"""The pool of threads: lazily made, closed on request, not inherited by a fork, errors carried to the caller."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import samebits
import torch
from samebits import _threads

PACKAGE = Path(_threads.__file__).parents[1]
FORKING = """
import os, sys, threading
import samebits, torch
from samebits import _product
_product.WORTH_THREADS = 0
x, w = torch.randn(64, 64), torch.randn(200, 64)
samebits.set_num_threads(2)
before = samebits.linear(x, w)
assert threading.active_count() == 2
child = os.fork()
if child == 0:
    assert threading.active_count() == 1
    same = torch.equal(samebits.linear(x, w), before)
    os._exit(0 if same and threading.active_count() == 2 else 7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.equal(samebits.linear(x, w), before))
samebits.set_num_threads(1)
"""


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Iterator[None]:
    yield
    samebits.set_num_threads(1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samebits-")]


def test_jobs_run_in_the_pool_and_in_the_caller() -> None:
    samebits.set_num_threads(3)
    assert samebits.get_num_threads() == 3
    names: set[str] = set()
    together = threading.Barrier(3, timeout=30)

    def job() -> None:
        names.add(threading.current_thread().name)
        together.wait()

    _threads.run([job, job, job])
    assert names == {threading.current_thread().name, "samebits-0", "samebits-1"}


def test_threads_are_made_when_first_needed() -> None:
    samebits.set_num_threads(2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samebits-")]


def test_an_error_of_any_job_reaches_the_caller_after_all_have_ended() -> None:
    samebits.set_num_threads(2)
    ended = threading.Event()

    def fails() -> None:
        raise LookupError("no such row")

    for jobs in ([fails, ended.set], [ended.set, fails]):
        ended.clear()
        with pytest.raises(LookupError, match="no such row"):
            _threads.run(jobs)
        assert ended.is_set()


def test_more_jobs_than_threads() -> None:
    samebits.set_num_threads(2)
    done: list[int] = []
    _threads.run([lambda i=i: done.append(i) for i in range(20)])  # type: ignore[misc]
    assert sorted(done) == list(range(20))


def test_callers_in_several_threads_share_the_pool() -> None:
    samebits.set_num_threads(2)
    done: list[int] = []

    def caller() -> None:
        for _ in range(50):
            _threads.run([lambda: done.append(1)] * 3)

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(timeout=60)
    assert len(done) == 600


@pytest.mark.parametrize(("total", "grain"), [(0, 1), (1, 8), (100, 8), (96, 48), (97, 48), (5, 100)])
def test_shares_cover_everything_once(total: int, grain: int) -> None:
    for num_threads in (1, 2, 5):
        samebits.set_num_threads(num_threads)
        ranges = _threads.shares(total, grain)
        assert [i for begin, end in ranges for i in range(begin, end)] == list(range(total))
        assert len(ranges) <= num_threads
        assert all(begin % grain == 0 for begin, _ in ranges)


def test_scratch_is_aligned_and_belongs_to_a_thread() -> None:
    mine = _threads.scratch(1000)
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(_threads.scratch(1000)))
    thread.start()
    thread.join(timeout=30)
    assert mine % 64 == 0
    assert other[0] % 64 == 0
    assert other[0] != mine


@pytest.mark.parametrize("wrong", [0, -1, 257])
def test_a_number_of_threads_out_of_range_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=r"^set_num_threads: num_threads must lie in 1..256"):
        samebits.set_num_threads(wrong)


@pytest.mark.parametrize("wrong", [True, 2.0, "2", None])
def test_a_number_of_threads_of_another_type_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"^set_num_threads: num_threads must be an int"):
        samebits.set_num_threads(wrong)  # type: ignore[arg-type]


@pytest.mark.timeout(300)
def test_a_forked_child_makes_its_own_threads() -> None:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    ended = subprocess.run(
        [sys.executable, "-c", FORKING], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "0 True\n"), ended.stderr


def test_a_pool_thread_that_flushes_to_zero_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samebits._product.WORTH_THREADS", 0)
    x, w = torch.randn(64, 64), torch.randn(200, 64)
    samebits.linear(x, w)
    samebits.set_num_threads(2)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode")
    try:
        _threads.run([lambda: None, lambda: None])  # the pool's thread is made here, and inherits the mode
    finally:
        torch.set_flush_denormal(False)
    with pytest.raises(RuntimeError, match="subnormal numbers are flushed to zero"):
        samebits.linear(x, w)
    samebits.set_num_threads(1)
    samebits.set_num_threads(2)
    samebits.linear(x, w)
