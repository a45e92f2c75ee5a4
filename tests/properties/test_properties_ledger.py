"""The ledger against a dumb model: duplicates, reordering, conflicts, failures, evictions, applies and resets."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from pnode.errors import BadRequest, Busy, Conflict, StepMismatch
from pnode.vnode.ledger import MAX_MICROBATCHES, Answer, Join, Ledger, New, Replay, StepKey

DIGESTS = (b"one", b"two")
ROOM = 10  # bytes of all replies together
AHEAD = st.sampled_from([0, 0, 0, 0, -2, -1, 1])


class LedgerMachine(RuleBasedStateMachine):
    """The model remembers everything that ever happened and decides by looking through it."""

    running: Bundle[StepKey] = Bundle("running")

    @initialize(window=st.integers(1, 4))
    def begin(self, window: int) -> None:
        self.window = window
        self.ledger = Ledger(window, max_reply_bytes=ROOM)
        self._forget(0)
        self.generation = 0

    def _forget(self, version: int) -> None:
        self.version = version
        self.in_order: list[tuple[StepKey, object, int]] = []  # every completion, of New and of Replay
        self.applied: list[tuple[int, int]] = []  # after how many completions, and the step
        self.digests: dict[StepKey, bytes] = {}  # of what is running or in
        self.under_way: dict[StepKey, str] = {}
        self.accumulated: list[StepKey] = []  # each one once, or exactly-once is broken

    def _kept(self, step: int) -> dict[StepKey, object]:
        """The newest `window` replies of a step, in so much room; an answer given again is as new as the first."""
        kept: dict[StepKey, tuple[object, int]] = {}
        applied = list(self.applied)
        for number, (key, reply, size) in enumerate([*self.in_order, (StepKey(-1, 0), None, 0)]):
            while applied and applied[0][0] <= number:
                kept = {each: value for each, value in kept.items() if each.step == applied[0][1]}
                applied.pop(0)
            kept.pop(key, None)
            kept[key] = (reply, size)
            for old in [each for each in kept if each.step == key.step][: -self.window]:
                del kept[old]
            while sum(each[1] for each in kept.values()) > ROOM:
                del kept[next(iter(kept))]
        return {key: reply for key, (reply, _) in kept.items() if key.step == step}

    def _num_in(self) -> int:
        return sum(key.step == self.version for key in self.accumulated)

    def _expected(self, key: StepKey, digest: bytes) -> object:
        if key.step != self.version:
            kept = self._kept(key.step) if key.step == self.version - 1 else {}
            if key not in kept:
                return StepMismatch
            return Answer(kept[key]) if self.digests[key] == digest else Conflict
        if self.digests.get(key, digest) != digest:
            return Conflict
        if key in self.under_way:
            return Join
        if key in self._kept(key.step):
            return Answer(self._kept(key.step)[key])
        if key in self.accumulated:
            return Busy if "replay" in self.under_way.values() else Replay
        return New if key.microbatch < self._num_in() + self.window else Busy

    @rule(target=running, ahead=AHEAD, back=st.integers(-5, 6), digest=st.sampled_from(DIGESTS))
    def admit(self, ahead: int, back: int, digest: bytes) -> MultipleResults[StepKey]:
        return self._admit(StepKey(max(0, self.version + ahead), max(0, self._num_in() - back)), digest)

    @rule(target=running, microbatch=st.integers(0, 9), digest=st.sampled_from(DIGESTS))
    def admit_past(self, microbatch: int, digest: bytes) -> MultipleResults[StepKey]:
        return self._admit(StepKey(max(0, self.version - 1), microbatch), digest)

    @rule(num=st.integers(1, 6), digest=st.sampled_from(DIGESTS))
    def train(self, num: int, digest: bytes) -> None:
        """What mostly happens: the next microbatches come in, one by one."""
        for _ in range(num):
            key = StepKey(self.version, self._num_in())
            self._admit(key, digest)
            self.complete(key, (key, "trained"))

    def _admit(self, key: StepKey, digest: bytes) -> MultipleResults[StepKey]:
        expected = self._expected(key, digest)
        got: object
        try:
            got = self.ledger.admit(key, digest)
        except (StepMismatch, Conflict, Busy) as error:
            got = error
        if isinstance(got, Answer):
            assert got == expected
            return multiple()
        assert type(got) is expected
        if not isinstance(got, New | Replay):
            assert not isinstance(got, Busy) or (got.retry_after_s or 0.0) > 0.0
            return multiple()
        self.under_way[key] = "new" if isinstance(got, New) else "replay"
        self.digests[key] = digest
        return multiple(key)

    @rule(key=running, reply=st.integers(), size=st.integers(0, ROOM + 1))
    def complete(self, key: StepKey, reply: object, size: int = 1) -> None:
        """In turn it counts; out of turn it is refused; what was dropped meanwhile is ignored."""
        if key not in self.under_way:
            self.ledger.complete(key, reply, size)
            return
        if key.microbatch > self._num_in():
            assert not self.ledger.is_turn(key)
            try:
                self.ledger.complete(key, reply, size)
            except StepMismatch:
                return
            raise AssertionError("a microbatch out of its turn was taken")
        assert self.ledger.is_turn(key)
        self.ledger.complete(key, reply, size)
        if self.under_way.pop(key) == "new":
            assert key not in self.accumulated
            self.accumulated.append(key)
        self.in_order.append((key, reply, size))

    @rule(key=running)
    def abandon(self, key: StepKey) -> None:
        self.ledger.abandon(key)
        if self.under_way.pop(key, None) == "new":
            del self.digests[key]

    @rule(ahead=st.integers(-1, 1))
    def apply(self, ahead: int) -> None:
        if ahead:
            try:
                self.ledger.applied(self.version + ahead)
            except StepMismatch:
                return
            raise AssertionError("another step was applied")
        self.ledger.applied(self.version)
        for key in self.under_way:
            if key not in self.accumulated:
                del self.digests[key]
        self.under_way = {}
        self.applied.append((len(self.in_order), self.version))
        num = self._num_in()
        self.version += 1
        self.ledger.check_apply(self.version - 1, num)
        try:
            self.ledger.check_apply(self.version - 1, num + 1)
        except Conflict:
            return
        raise AssertionError("an Apply with other microbatches was taken for a retry")

    @precondition(lambda self: self.version > 0)
    @rule(back=st.integers(0, 2))
    def reset(self, back: int) -> None:
        self.generation += 1
        self._forget(max(0, self.version - back))
        self.ledger.reset(self.generation, self.version)

    @rule(microbatch=st.sampled_from([-1, MAX_MICROBATCHES, 2**32 - 1]))
    def nonsense(self, microbatch: int) -> None:
        try:
            self.ledger.admit(StepKey(self.version, microbatch), DIGESTS[0])
        except BadRequest:
            return
        raise AssertionError("a microbatch that no step has was admitted")

    @invariant()
    def agrees(self) -> None:
        assert self.ledger.version == self.version
        assert self.ledger.generation == self.generation
        assert self.ledger.next == self._num_in()
        assert [key.microbatch for key in self.accumulated if key.step == self.version] == list(range(self._num_in()))


LedgerMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestLedger = LedgerMachine.TestCase
