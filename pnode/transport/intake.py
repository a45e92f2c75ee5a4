"""How messages come in: within a budget of memory that is taken before a byte of them is read, and in time.

gRPC holds a message whole before anybody can look at it, and how large it is nobody knows until then. So each call is
counted with the largest message before it is asked for, with its own size from then on, and with that of its reply
until that has left. What has come of a message is counted too while its call waits for room for the rest. Callers get
the room by turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import grpc

from pnode.errors import BadRequest, Busy, DeadlineExceeded, TooLarge
from pnode.transport import pieces
from pnode.transport.codec import Buffer
from pnode.transport.deadline import Deadline
from pnode.transport.turns import Bounds, FairTurns, Ticket
from pnode.transport.watch import Watch

# Of every message gRPC's own buffer and the bytes that Python is given exist at the same time.
COPIES = 2
# What a caller that found no room should wait: about the time of one large message.
_RETRY_AFTER_S = 0.5
# A handler answers by itself at its deadline; after so long more the call is ended for it.
_GRACE_S = 2.0


class Received:
    """The message of a call, and what is counted for it. Made by `Intake.received`; a context manager.

    Inside it the message is here; what is on its way out afterwards is counted until it has left, or nobody waits for
    it any more.
    """

    __slots__ = ("_context", "_deadline", "_due", "_in_pieces", "_intake", "_late", "_raws", "_ticket", "raw")
    raw: Buffer

    def __init__(
        self, intake: Intake, raws: Iterator[bytes], context: grpc.ServicerContext, deadline: Deadline, in_pieces: bool
    ) -> None:
        self._intake = intake
        self._raws = raws
        self._context = context
        self._deadline = deadline
        self._in_pieces = in_pieces
        self._late = False

    def __enter__(self) -> Self:
        self._ticket = self._intake.room(self._deadline)
        # Before the message, whose pieces may each come in time and all of them never end.
        self._due = self._intake.watch.begin(self._message_s(), self._end)
        try:
            raw = self._whole() if self._in_pieces else self._next()
            if raw is None:
                raise BadRequest("the call brought no message")
            self._expect_nothing()
        except BaseException:
            self._release()
            raise
        self.raw = raw
        self._intake.turns.resize(self._ticket, len(raw) if self._in_pieces else COPIES * len(raw))
        self._deadline.caller.carry(self.hand_over)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # It may take long until the reply has left, and the message is not needed for that.
        del self.raw
        if kind is not None or not self._context.add_callback(self._release):
            self._release()

    def reserve(self, num_bytes: int) -> None:
        """Wait for room for so many bytes more, which the message becomes when it is decompressed.

        Raises TooLarge where there is never so much, Busy where there is none in time.
        """
        num_bytes += len(self.raw)
        if num_bytes > self._ticket.amount:
            self._intake.more(self._ticket, self._deadline, num_bytes)

    def hand_over(self) -> None:
        """The message is counted elsewhere from here on: with the VNode that has admitted it."""
        self._intake.turns.resize(self._ticket, 0)

    def answered(self, reply_bytes: int) -> None:
        """A reply of so many bytes is counted in place of the message until it has left."""
        self._intake.turns.resize(self._ticket, COPIES * reply_bytes)

    def _whole(self) -> Buffer | None:
        """All the pieces, once there is room for them."""
        most = self._intake.message_bytes

        def reserve(num_bytes: int) -> None:
            self._expect_nothing()
            # All that is here yet is a chunk, and that much the call goes on to hold.
            self._intake.turns.resize(self._ticket, min(most, pieces.CHUNK_BYTES))
            self._intake.more(self._ticket, self._deadline, num_bytes + most)

        return pieces.joined(iter(self._next, None), self._intake.max_whole_bytes, reserve)

    def _next(self) -> bytes | None:
        """The next message of the call, which must come in its time and before the deadline; None after the last."""
        self._due.move(self._message_s())
        # Of a call that was cancelled gRPC raises its own error here, or says that the messages have ended.
        raw = next(self._raws, None)
        if self._late:
            raise DeadlineExceeded(f"no message came within {self._intake.receive_s:g} s")
        if raw is not None:
            self._deadline.check()
        return raw

    def _expect_nothing(self) -> None:
        """No message is to come now, so nobody can be late with it; only the whole call can."""
        self._due.move(self._deadline.left_s() + _GRACE_S)

    def _message_s(self) -> float:
        return min(self._intake.receive_s, self._deadline.left_s() + _GRACE_S)

    def _end(self) -> None:
        self._late = True
        self._context.cancel()

    def _release(self) -> None:
        self._intake.turns.resize(self._ticket, 0)
        self._due.call_off()


class Intake:
    """The memory of the messages in flight of one kind of calls."""

    def __init__(
        self,
        watch: Watch,
        *,
        budget_bytes: int,
        max_message_bytes: int,
        receive_s: float,
        queue: Bounds | None,
        max_whole_bytes: int = 0,
    ) -> None:
        """receive_s: how long a message may take to come. queue: how many calls may wait for room, each with a thread.

        The budget is that of at least two messages, so that no caller can hold all of it. A message in pieces that
        does not fit beside a chunk is refused, however large it may be otherwise.
        """
        self.watch = watch
        self.message_bytes = COPIES * max_message_bytes
        budget_bytes = max(budget_bytes, 2 * self.message_bytes)
        self.max_whole_bytes = min(max_whole_bytes, budget_bytes - self.message_bytes)
        self._budget_bytes = budget_bytes
        self.receive_s = receive_s
        self.turns = FairTurns("the memory of messages", capacity=budget_bytes, share=budget_bytes // 2)
        self._queue = queue

    def received(
        self, raws: Iterator[bytes], context: grpc.ServicerContext, deadline: Deadline, *, in_pieces: bool = False
    ) -> Received:
        """The message of a call, once there is room for it and it has come. The whole call is watched from there on.

        Of one that comes in pieces the first is waited for as any message, and then there must be room for the whole.
        To enter it raises Busy without room, BadRequest where no message comes. A call that ends while it is waited
        for raises what gRPC raises, for gRPC.
        """
        return Received(self, raws, context, deadline, in_pieces)

    def room(self, deadline: Deadline) -> Ticket:
        """Room for a message of which nothing is known."""
        ticket = self.turns.ask(deadline.caller.name, self.message_bytes, bounds=self._queue)
        self._wait(ticket, deadline)
        return ticket

    def more(self, ticket: Ticket, deadline: Deadline, num_bytes: int) -> None:
        """Room for so many bytes in all; what the call holds already stays counted."""
        if num_bytes > self._budget_bytes:
            raise TooLarge(f"a message of {num_bytes} bytes is over the {self._budget_bytes} bytes of all in flight")
        self.turns.more(ticket, num_bytes, bounds=self._queue)
        self._wait(ticket, deadline)

    def _wait(self, ticket: Ticket, deadline: Deadline) -> None:
        try:
            self.turns.wait(ticket, deadline.at_most(self.receive_s))
        except DeadlineExceeded:
            deadline.check()
            raise Busy("no memory for messages is free", retry_after_s=_RETRY_AFTER_S) from None
