"""The front's account of one VNode's training: which microbatches run, which are in, and what was answered.

A pure state machine: no I/O, no threads, no clock; the caller holds a lock. The truth is in the worker, which counts
accumulated microbatches together with its gradient; this account follows it and makes retries cheap.

    New -> complete     the microbatch is in; its reply is kept
    New -> abandon      it failed before its backward: a retry is New again
    Replay -> complete  it was in already, its reply had been evicted; recomputed without accumulating
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from pnode.errors import BadRequest, Busy, Conflict, StepMismatch

# Digests are kept for a whole step, so that a conflict is found however late it comes: about 10 MB at the worst.
MAX_MICROBATCHES = 65_536
# Replies are a cache: what is dropped is computed again when somebody asks, so this bounds memory, not correctness.
MAX_REPLY_BYTES = 16 << 20
# What a caller outside the window should wait: about the time of one microbatch.
RETRY_AFTER_S = 0.05


class StepKey(NamedTuple):
    """The idempotency key of a Train, within a generation."""

    step: int
    microbatch: int


class New:
    """Run it: forward here, Train downstream, backward in turn, then `complete`."""


class Join:
    """The same request is running. Wait, then admit again."""


class Replay:
    """It is in, but its reply is gone: recompute the reply without accumulating, then `complete`."""


@dataclass(frozen=True)
class Answer:
    """The reply that was given before."""

    reply: object


class _Kept(NamedTuple):
    """A stored reply, and what it weighs."""

    reply: object
    num_bytes: int


Admission = New | Join | Answer | Replay


class Ledger:
    """One VNode's account. `window` microbatches may be under way at once: next .. next + window - 1.

    Of the running step and of the one before, the newest `window` replies each are kept, `max_reply_bytes` in all.
    """

    def __init__(self, window: int, *, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        if window < 1:
            raise ValueError(f"Ledger: expected a window of at least 1, got {window}")
        self._window = window
        self._max_reply_bytes = max_reply_bytes
        self.reset(generation=0, version=0)

    def reset(self, generation: int, version: int) -> None:
        """Adopt a generation at a version; every account of what went before is dropped."""
        self._generation = generation
        self._version = version
        self._last: dict[StepKey, bytes] = {}
        self._replies: OrderedDict[StepKey, _Kept] = OrderedDict()
        self._reply_bytes = 0
        self._applied_num: int | None = None
        self._begin_step()

    def _begin_step(self) -> None:
        self._next = 0
        self._running: dict[StepKey, bytes] = {}
        self._done: list[bytes] = []

    @property
    def generation(self) -> int:
        """Of the run, as of the last reset."""
        return self._generation

    @property
    def version(self) -> int:
        """Of the parameters: the step that is being trained."""
        return self._version

    @property
    def next(self) -> int:
        """Microbatches of the running step that are in; the one whose turn it is."""
        return self._next

    def admit(self, key: StepKey, digest: bytes) -> Admission:
        """Judge a Train by its key and the digest of its request.

        Raises StepMismatch for a step of the past or the future, Conflict for the same key with another digest,
        Busy outside the window (with retry_after_s), BadRequest for a microbatch that no step can have.
        """
        if not 0 <= key.microbatch < MAX_MICROBATCHES:
            raise BadRequest(f"microbatch {key.microbatch} is outside 0 .. {MAX_MICROBATCHES - 1}")
        if key.step != self._version:
            return self._admit_past(key, digest)
        known = self._digest(key)
        if known is not None and known != digest:
            raise Conflict(f"microbatch {key.microbatch} of step {key.step} came before with another request")
        if key in self._running:
            return Join()
        if key in self._replies:
            return Answer(self._replies[key].reply)
        self._check_room(key)
        self._running[key] = digest
        return New() if key.microbatch >= self._next else Replay()

    def _digest(self, key: StepKey) -> bytes | None:
        return self._done[key.microbatch] if key.microbatch < self._next else self._running.get(key)

    def _admit_past(self, key: StepKey, digest: bytes) -> Answer:
        """Answer a retry of the step just applied while its reply is kept."""
        if key not in self._last or key not in self._replies:
            raise StepMismatch(f"the VNode trains step {self._version}; a microbatch of step {key.step} came")
        if self._last[key] != digest:
            raise Conflict(f"microbatch {key.microbatch} of step {key.step} came before with another request")
        return Answer(self._replies[key].reply)

    def _check_room(self, key: StepKey) -> None:
        # Each running microbatch holds a graph in the worker, so replays are bounded too: one at a time.
        if key.microbatch >= self._next + self._window:
            wanted = f"{self._next} .. {self._next + self._window - 1}"
            raise Busy(
                f"microbatch {key.microbatch} is outside the window {wanted} of step {key.step}",
                retry_after_s=RETRY_AFTER_S,
            )
        if key.microbatch < self._next and any(other.microbatch < self._next for other in self._running):
            raise Busy("another accumulated microbatch is being answered again", retry_after_s=RETRY_AFTER_S)

    def is_turn(self, key: StepKey) -> bool:
        """Whether the backward may begin: everything before it is in. Raises StepMismatch once the step has ended."""
        if key.step != self._version:
            raise StepMismatch(f"step {key.step} has ended: the VNode stands at version {self._version}")
        return key.microbatch <= self._next

    def complete(self, key: StepKey, reply: object, num_bytes: int = 0) -> None:
        """The backward is done and this is the reply, of so many bytes. Of what does not run any more: ignored."""
        digest = self._running.get(key)
        if digest is None:
            return
        if key.microbatch > self._next:
            raise StepMismatch(f"microbatch {key.microbatch} of step {key.step} ended before {self._next}")
        del self._running[key]
        if key.microbatch == self._next:
            self._done.append(digest)
            self._next += 1
        self._keep(key, _Kept(reply, num_bytes))

    def _keep(self, key: StepKey, kept: _Kept) -> None:
        # A driver has at most a window of calls in flight, so no more replies than that can be asked for again.
        self._replies[key] = kept
        self._reply_bytes += kept.num_bytes
        current = [kept for kept in self._replies if kept.step == self._version]
        for evicted in current[: -self._window]:
            self._evict(evicted)
        while self._reply_bytes > self._max_reply_bytes:
            self._evict(next(iter(self._replies)))

    def _evict(self, key: StepKey) -> None:
        self._reply_bytes -= self._replies.pop(key).num_bytes

    def check_apply(self, step: int, num_microbatches: int) -> None:
        """Raises Conflict where this step was applied with another number of microbatches."""
        if step == self._version - 1 and self._applied_num not in (None, num_microbatches):
            raise Conflict(
                f"step {step} was applied with {self._applied_num} microbatches; an Apply with {num_microbatches} came"
            )

    def abandon(self, key: StepKey) -> None:
        """It failed before its backward: forget it. Unknown keys are ignored."""
        self._running.pop(key, None)

    def applied(self, step: int) -> None:
        """The optimizer step is done: version is step + 1, nothing is in. Replies of this step are kept for one more.

        Raises StepMismatch unless `step` is the running one.
        """
        if step != self._version:
            raise StepMismatch(f"the VNode trains step {self._version}, step {step} cannot have been applied")
        for key in [key for key in self._replies if key.step != step]:
            self._evict(key)
        self._last = {key: self._done[key.microbatch] for key in self._replies}
        self._applied_num = self._next
        self._version = step + 1
        self._begin_step()
