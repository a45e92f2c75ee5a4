"""Handing calls of kernels to waiting threads, all in compiled code: nobody needs the interpreter's lock to take one.

Threads of the pool are in `serve`, a caller comes by `hand_out`; only one caller at a time, which `_threads` sees to.
The calls of a batch are records in a table (see `_atomics.call_record`). Each is taken by one thread, which adds 1 to
the word WORK: it holds the number of calls, shifted, and how many are taken, so that who takes a call cannot mistake
the batch. The caller takes calls like everyone else, until none is left: where no other thread gets a processor in
time, it has done all of the work itself. DONE counts the calls that have ended.

Who waits looks again and again for a short while, then sleeps on a semaphore of the C library. A sleeper announces
itself and then looks once more; whoever changes a word looks for sleepers afterwards. So no waking is lost.
"""

from __future__ import annotations

from samebits._atomics import (
    RECORD_WORDS,
    WORD_BYTES,
    add_word,
    call_c,
    call_record,
    load_word,
    monotonic_ns,
    pause,
    store_word,
    swap_word,
)
from samebits._compile import kernel, routine
from samebits._intrinsics import ask_kernel, load_i64

# Where the shared words are: what changes often lies on lines of the cache of its own.
LINE = 16
WORK, TABLE, END = 0, 1, 2
DONE, FAULTS = LINE, LINE + 1
SLEEPERS = 2 * LINE
SETTINGS = 3 * LINE
REST, FINISHED = 5 * LINE, 6 * LINE  # two semaphores: for threads without work, and for the caller
WORDS = 7 * LINE
# What stands from SETTINGS on, and does not change: functions of the C library, and the canary's kernel.
WAIT, POST, YIELD, CLOCK, CLOCK_ID, PROBE, PROBE_VALUES, PATIENCE = range(SETTINGS, SETTINGS + 8)

TOTAL_SHIFT = 32
TAKEN_MASK = (1 << TOTAL_SHIFT) - 1
CALLER_SLEEPS = 1 << TOTAL_SHIFT  # in DONE
LOOKS = 64  # between two looks at the clock


@routine()
def _is_work(shared: int) -> bool:
    """Whether there is a call to take."""
    work = load_word(shared, WORK)
    return bool((work & TAKEN_MASK) < (work >> TOTAL_SHIFT))


@routine()
def _is_awaited(shared: int, total: int) -> bool:
    """What a thread waits for: the end of `total` calls, or, if that is 0, work or the end of the pool."""
    if total != 0:
        return bool(load_word(shared, DONE) == total)
    return _is_work(shared) or load_word(shared, END) != 0


@routine()
def _look_for(shared: int, total: int) -> bool:
    """Wait, awake, but not long; whether it came. Gives the processor to other threads that want it."""
    clock, clock_id = load_i64(shared, CLOCK), load_i64(shared, CLOCK_ID)
    until = monotonic_ns(clock, clock_id) + load_i64(shared, PATIENCE)
    while True:
        for _ in range(LOOKS):
            if _is_awaited(shared, total):
                return True
            pause()
        if monotonic_ns(clock, clock_id) > until:
            return False
        call_c(load_i64(shared, YIELD), shared)


@routine()
def _sleep(shared: int, semaphore: int) -> None:
    """Until the semaphore is posted; a signal may interrupt it before."""
    while call_c(load_i64(shared, WAIT), shared + semaphore * WORD_BYTES) != 0:
        pass


@routine()
def _sleep_until_work(shared: int) -> None:
    """Announce a sleeper, and sleep unless there is work by now."""
    add_word(shared, SLEEPERS, 1)
    while _is_awaited(shared, 0):
        sleepers = load_word(shared, SLEEPERS)
        if sleepers == 0:
            break  # somebody is about to wake this thread, and that must be used up
        if swap_word(shared, SLEEPERS, sleepers, sleepers - 1):
            return
    _sleep(shared, REST)


@routine()
def _wake(shared: int, most: int) -> None:
    """Wake as many sleepers, if there are so many."""
    while True:
        sleepers = load_word(shared, SLEEPERS)
        count = min(sleepers, most)
        if count == 0:
            return
        if swap_word(shared, SLEEPERS, sleepers, sleepers - count):
            for _ in range(count):
                call_c(load_i64(shared, POST), shared + REST * WORD_BYTES)
            return


@routine()
def _take_calls(shared: int) -> None:
    """Take calls and make them until none is left. A thread whose arithmetic is another makes none, and tells."""
    while _is_work(shared):
        work = add_word(shared, WORK, 1)
        call, total = work & TAKEN_MASK, work >> TOTAL_SHIFT
        if call >= total:
            return
        faults = ask_kernel(load_i64(shared, PROBE), load_i64(shared, PROBE_VALUES))
        if faults == 0:
            call_record(load_word(shared, TABLE) + call * RECORD_WORDS * WORD_BYTES)
        else:
            store_word(shared, FAULTS, faults)
        if add_word(shared, DONE, 1) + 1 == total + CALLER_SLEEPS:
            call_c(load_i64(shared, POST), shared + FINISHED * WORD_BYTES)


@kernel("void(intp)")
def serve(shared: int) -> None:
    """What a thread of the pool does until END."""
    while load_word(shared, END) == 0:
        _take_calls(shared)
        if not _look_for(shared, 0):
            _sleep_until_work(shared)


@kernel("void(intp)")
def dismiss(shared: int) -> None:
    """Let all threads leave `serve`."""
    store_word(shared, END, 1)
    _wake(shared, load_word(shared, SLEEPERS))


@kernel("int64(intp, intp, intp)")
def hand_out(shared: int, table: int, total: int) -> int:
    """Have `total` > 0 calls made, the first of them here; return, when all have ended, the faults of the canary."""
    store_word(shared, TABLE, table)
    store_word(shared, FAULTS, 0)
    store_word(shared, DONE, 0)
    store_word(shared, WORK, (total << TOTAL_SHIFT) + 1)
    _wake(shared, total - 1)
    call_record(table)
    add_word(shared, DONE, 1)
    _take_calls(shared)
    if not _look_for(shared, total) and add_word(shared, DONE, CALLER_SLEEPS) != total:
        _sleep(shared, FINISHED)
    faults: int = load_word(shared, FAULTS)
    return faults
