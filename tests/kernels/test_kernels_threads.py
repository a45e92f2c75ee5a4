"""The pool of threads: lazily made, closed on request, not inherited by a fork, asleep without work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import samebits
import torch
from samebits import _hand_out, _threads
from samebits._atomics import add_word, load_word, pause, store_word
from samebits._compile import kernel
from samebits._intrinsics import store32

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


MANY_LOOKS = 1 << 31  # about a minute: a thread that does not come must not hang the tests


@kernel("void(intp, intp, intp)")
def count(place: int, unused: int, also_unused: int) -> None:
    """Add 1 to the word at place."""
    add_word(place, 0, 1)


@kernel("void(intp, intp, intp)")
def count_and_await(place: int, awaited: int, least: int) -> None:
    """Add 1 to the word at place; return when another word is not less, and make the first one negative if it stays."""
    add_word(place, 0, 1)
    for _ in range(MANY_LOOKS):
        if load_word(awaited, 0) >= least:
            return
        pause()
    store_word(place, 0, -MANY_LOOKS)


@kernel("void(intp, float32, " + ", ".join(["intp"] * 8) + ", uint64, float32, intp)")
def write_all(
    place: int, x: float, a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int, key: int, y: float, z: int
) -> None:
    """Everything that it was given, to where the first argument says."""
    for i, value in enumerate((a, b, c, d, e, f, g, h, z)):
        store_word(place, i, value)
    add_word(place, 9, key)
    store32(place, 20, x)
    store32(place, 21, y)


def words(count: int = 1) -> tuple[np.ndarray, int]:
    """Words of zero, and their address."""
    made = np.zeros(count, dtype=np.int64)
    return made, made.ctypes.data


def shared_words() -> tuple[_threads._Pool, int]:
    """The pool, which must be there, and where its words are."""
    pool = _threads._state.pool
    assert pool is not None
    return pool, pool.shared


def wait_for_sleepers(number: int) -> None:
    """Until so many threads of the pool sleep: then nothing here needs the processor."""
    pool, place = shared_words()
    sleepers, deadline = [0], time.monotonic() + 60
    while sleepers[0] != number and time.monotonic() < deadline:
        sleepers[0] = int(pool._words[(place - pool._words.ctypes.data) // 8 + _hand_out.SLEEPERS])
    assert sleepers[0] == number


def test_calls_run_in_the_pool_and_in_the_caller_at_once() -> None:
    samebits.set_num_threads(3)
    assert samebits.get_num_threads() == 3
    met, place = words()
    _threads.run([(count_and_await, (place, place, 3))] * 3)
    assert met[0] == 3
    assert {t.name for t in threading.enumerate()} >= {"samebits-0", "samebits-1"}


def test_threads_are_made_when_first_needed() -> None:
    samebits.set_num_threads(2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samebits-")]


def test_threads_without_work_sleep_and_wake_again() -> None:
    samebits.set_num_threads(3)
    for _ in range(3):
        met, place = words()
        _threads.run([(count_and_await, (place, place, 3))] * 3)
        assert met[0] == 3
        wait_for_sleepers(2)


def test_a_caller_that_waits_long_sleeps_and_is_woken() -> None:
    samebits.set_num_threads(2)
    done, place = words()
    _threads.run([(count, (place, 0, 0))] * 2)
    awaited = shared_words()[1] + _hand_out.DONE * 8
    mine, here = words()
    begun, there = words()
    _threads.run([(count_and_await, (here, there, 1)), (count_and_await, (there, awaited, _hand_out.CALLER_SLEEPS))])
    assert (done[0], mine[0], begun[0]) == (2, 1, 1)


@pytest.mark.parametrize("patience_ns", [0, 200_000], ids=["asleep", "awake"])
def test_every_call_is_made_once_however_many(patience_ns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "PATIENCE_NS", patience_ns)
    samebits.set_num_threads(4)
    for number in [*range(1, 40), *[3] * 500]:
        made, place = words(number)
        _threads.run([(count, (place + 8 * i, 0, 0)) for i in range(number)])
        assert made.tolist() == [1] * number


def test_callers_in_several_threads_share_the_pool() -> None:
    samebits.set_num_threads(2)
    done, place = words()

    def caller() -> None:
        for _ in range(50):
            _threads.run([(count, (place, 0, 0))] * 3)

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(timeout=60)
    assert done[0] == 600


def test_a_kernel_gets_its_integers_and_floats_as_when_called_alone() -> None:
    samebits.set_num_threads(2)
    (alone, here), (shared, there) = words(11), words(11)
    _, elsewhere = counted = words()
    rest = (np.float32(-0.1), *range(-3, 5), np.uint64(2**64 - 3), np.float32(np.inf), -(2**62))
    write_all(here, *rest)
    _threads.run([(write_all, (there, *rest)), (count, (elsewhere, 0, 0))])
    assert counted[0][0] == 1
    assert shared.tobytes() == alone.tobytes()
    assert shared[:10].tolist() == [*range(-3, 5), -(2**62), -3]


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
    assert _threads.scratch(1000, 1) not in (mine, other)
    assert _threads.scratch(900) == mine
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
    alone = samebits.linear(x, w)
    samebits.set_num_threads(2)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode")
    made, place = words()
    try:
        with pytest.raises(RuntimeError, match="subnormal numbers are flushed to zero"):
            _threads.run([(count, (place, 0, 0))] * 2)  # the pool's thread is made here, and inherits the mode
    finally:
        torch.set_flush_denormal(False)
    faults = shared_words()[1] + _hand_out.FAULTS * 8
    with pytest.raises(RuntimeError, match="subnormal numbers are flushed to zero"):
        _threads.run([(count_and_await, (place, faults, 1)), (count, (place, 0, 0))])
    assert made[0] == 1, "the pool's thread took its call, and did not make it"
    samebits.set_num_threads(1)
    samebits.set_num_threads(2)
    assert torch.equal(samebits.linear(x, w), alone)
