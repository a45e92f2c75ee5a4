"""A kernel that many threads meet at once is compiled once, and all of them get its answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from samebits._compile import kernel

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
