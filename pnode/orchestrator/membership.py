"""Who belongs to the network: registrations, heartbeats, expiry. Pure: the caller brings the time.

Each registration gets an incarnation, higher than all before. It fences the membership that the same UUID had before:
a node that crashed and came back, or a ghost that still runs elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from pnode.errors import Busy, Conflict
from pnode.v1 import node_pb2


@dataclass
class Member:
    """One node. Times are of the orchestrator's monotonic clock, in seconds."""

    uuid: str
    address: str
    capabilities: node_pb2.Capabilities
    incarnation: int
    last_seen_s: float
    boot: str
    load: node_pb2.Load
    draining_since_s: float | None = None
    # The membership that this one fenced, while it could still be heard: (incarnation, address).
    fenced: tuple[int, str] | None = None

    @property
    def draining(self) -> bool:
        """Whether it is on its way out and must be given nothing new."""
        return self.draining_since_s is not None

    @property
    def memory_bytes(self) -> int:
        """Granted to all VNodes on it: as of its last heartbeat, for owners need their memory for other things, too."""
        told = self.load.HasField("granted_memory_bytes")
        return self.load.granted_memory_bytes if told else self.capabilities.vnode_memory_bytes

    def drain(self, now: float) -> None:
        """Remember that it leaves, and since when."""
        if self.draining_since_s is None:
            self.draining_since_s = now


class Membership:
    """All members by UUID."""

    def __init__(self, *, silence_s: float, max_nodes: int, first_incarnation: int = 1) -> None:
        self._silence_s = silence_s
        self._max_nodes = max_nodes
        self._next = first_incarnation
        self._members: dict[str, Member] = {}

    def find(self, uuid: str) -> Member | None:
        """The member, or None."""
        return self._members.get(uuid)

    def every(self) -> list[Member]:
        """All members, by UUID."""
        return [self._members[uuid] for uuid in sorted(self._members)]

    def before(self, uuid: str, address: str) -> Member | None:
        """Another member at the address of this one, or None."""
        return next((each for each in self._members.values() if each.address == address and each.uuid != uuid), None)

    def check(self, uuid: str, address: str, *, successor_of: int = 0) -> None:
        """Raises Busy when no more nodes may join, and Conflict for an address where another member is.

        Without the latter, a member could turn away what is meant for another, by saying that it is there. Whoever
        comes after a node that is gone is taken in once that one has been silent for too long, or where it is proven
        to be the `successor_of` that incarnation.
        """
        before = self.before(uuid, address)
        leaves = before is not None and before.incarnation == successor_of
        if uuid not in self._members and len(self._members) - leaves >= self._max_nodes:
            raise Busy(f"{self._max_nodes} nodes have joined, the most allowed", retry_after_s=self._silence_s)
        if before is not None and not leaves:
            raise Conflict(f"another node is at {address}", retry_after_s=self._silence_s)

    def register(
        self, uuid: str, address: str, capabilities: node_pb2.Capabilities, now: float, *, boot: str = ""
    ) -> Member:
        """Take a node in under a new incarnation, whatever stood under its UUID before. Raises as `check`."""
        self.check(uuid, address)
        old = self._members.get(uuid)
        member = Member(
            uuid=uuid,
            address=address,
            capabilities=capabilities,
            incarnation=self._next,
            last_seen_s=now,
            boot=boot,
            load=node_pb2.Load(),
            fenced=None if old is None else (old.incarnation, old.address),
        )
        self._next += 1
        self._members[uuid] = member
        return member

    def heartbeat(self, uuid: str, incarnation: int, load: node_pb2.Load, now: float) -> Member | None:
        """The member that sent this, or None when it must register again.

        Raises Conflict for a ghost: another process with this UUID registered later, elsewhere. Were it told to
        register again, the two would take the UUID from each other for ever.
        """
        member = self._members.get(uuid)
        if member is None:
            return None
        if member.incarnation != incarnation:
            if member.fenced is not None and member.fenced[0] == incarnation and member.fenced[1] != member.address:
                raise Conflict(f"node {uuid} registered again from {member.address}; one UUID is one node")
            return None
        member.last_seen_s = now
        member.load = load
        return member

    def remove(self, uuid: str, incarnation: int) -> bool:
        """Let a member go. False where it is not there under this incarnation."""
        member = self._members.get(uuid)
        if member is None or member.incarnation != incarnation:
            return False
        del self._members[uuid]
        return True

    def silent(self, now: float) -> list[Member]:
        """Members that have not been heard for too long."""
        return [member for member in self.every() if now - member.last_seen_s > self._silence_s]

    def overdue(self, now: float, drain_s: float) -> list[Member]:
        """Members that have been draining for longer than they may."""
        return [
            member
            for member in self.every()
            if member.draining_since_s is not None and now - member.draining_since_s > drain_s
        ]
