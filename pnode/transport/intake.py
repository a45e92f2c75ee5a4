"""How messages come in: within a budget of memory that is taken before a byte of them is read, and in time.

gRPC holds a message whole before anybody can look at it, and how large it is nobody knows until then. So each call is
counted with the largest message before it is asked for, with its own size from then on, and with that of its reply
until that has left. What has come of a message is counted too while its call waits for room for the rest. Callers get
the room by turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """A message, and what is counted for it."""

    def __init__(
        self, raw: Buffer, num_copies: int, turns: FairTurns, ticket: Ticket, more: Callable[[int], None]
    ) -> None:
        self.raw = raw
        self._more = more
        self._turns = turns
        self._ticket = ticket
        turns.resize(ticket, num_copies * len(raw))

    def reserve(self, num_bytes: int) -> None:
        """Wait for room for so many bytes more, which the message becomes when it is decompressed.

        Raises TooLarge where there is never so much, Busy where there is none in time.
        """
        num_bytes += len(self.raw)
        if num_bytes > self._ticket.amount:
            self._more(num_bytes)

    def hand_over(self) -> None:
        """The message is counted elsewhere from here on: with the VNode that has admitted it."""
        self._turns.resize(self._ticket, 0)

    def answered(self, reply_bytes: int) -> None:
        """A reply of so many bytes is counted in place of the message until it has left."""
        self._turns.resize(self._ticket, COPIES * reply_bytes)


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
        self._watch = watch
        self._message_bytes = COPIES * max_message_bytes
        budget_bytes = max(budget_bytes, 2 * self._message_bytes)
        self._max_whole_bytes = min(max_whole_bytes, budget_bytes - self._message_bytes)
        self._budget_bytes = budget_bytes
        self._receive_s = receive_s
        self._turns = FairTurns("the memory of messages", capacity=budget_bytes, share=budget_bytes // 2)
        self._queue = queue

    @contextmanager
    def received(
        self, raws: Iterator[bytes], context: grpc.ServicerContext, deadline: Deadline, *, in_pieces: bool = False
    ) -> Iterator[Received]:
        """The message of a call, once there is room for it and it has come. The whole call is watched from here on.

        Of one that comes in pieces the first is waited for as any message, and then there must be room for the whole.
        Raises Busy without room, BadRequest where no message comes. A call that ends while it is waited for raises
        what gRPC raises, for gRPC.
        """
        ticket = self._room(deadline)
        called_off: list[Callable[[], None]] = []

        def release() -> None:
            self._turns.resize(ticket, 0)
            for call_off in called_off:
                call_off()

        def more(num_bytes: int) -> None:
            self._more(ticket, deadline, num_bytes)

        def reserve(num_bytes: int) -> None:
            # All that is here yet is a chunk, and that much the call goes on to hold.
            self._turns.resize(ticket, min(self._message_bytes, pieces.CHUNK_BYTES))
            more(num_bytes + self._message_bytes)

        try:
            # Before the message, whose pieces may each come in time and all of them never end.
            called_off.append(self._watch.begin(deadline.left_s() + _GRACE_S, context.cancel))
            coming = self._watched(raws, context, deadline)
            # The one message, or the one that all of them make up.
            whole = pieces.joined(coming, self._max_whole_bytes, reserve) if in_pieces else None
            raw = next(coming, None) if whole is None else whole
            if raw is None:
                raise BadRequest("the call brought no message")
            received = Received(raw, 1 if in_pieces else COPIES, self._turns, ticket, more)
            deadline.caller.carry(received.hand_over)
            yield received
        except BaseException:
            release()
            raise
        # What is on its way out is counted until it has left, or nobody waits for it any more.
        if not context.add_callback(release):
            release()

    def _watched(self, raws: Iterator[bytes], context: grpc.ServicerContext, deadline: Deadline) -> Iterator[bytes]:
        """Each message of a stream, which must come in its time and before the deadline."""
        late: list[bool] = []

        def end() -> None:
            late.append(True)
            context.cancel()

        while True:
            with self._watch.over(min(self._receive_s, deadline.left_s() + _GRACE_S), end):
                # Of a call that was cancelled gRPC raises its own error here, or says that the messages have ended.
                raw = next(raws, None)
            if late:
                raise DeadlineExceeded(f"no message came within {self._receive_s:g} s")
            if raw is None:
                return
            deadline.check()
            yield raw

    def _room(self, deadline: Deadline) -> Ticket:
        """Room for a message of which nothing is known."""
        ticket = self._turns.ask(deadline.caller.name, self._message_bytes, bounds=self._queue)
        self._wait(ticket, deadline)
        return ticket

    def _more(self, ticket: Ticket, deadline: Deadline, num_bytes: int) -> None:
        """Room for so many bytes in all; what the call holds already stays counted."""
        if num_bytes > self._budget_bytes:
            raise TooLarge(f"a message of {num_bytes} bytes is over the {self._budget_bytes} bytes of all in flight")
        self._turns.more(ticket, num_bytes, bounds=self._queue)
        self._wait(ticket, deadline)

    def _wait(self, ticket: Ticket, deadline: Deadline) -> None:
        try:
            self._turns.wait(ticket, deadline.at_most(self._receive_s))
        except DeadlineExceeded:
            deadline.check()
            raise Busy("no memory for messages is free", retry_after_s=_RETRY_AFTER_S) from None
