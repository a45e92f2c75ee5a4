"""Who is at an address that a new node and a member both call theirs: whoever answers there, and proves who it is.

A node that comes back under another key finds its own old membership in its way. Its word alone moves nobody, or any
member could evict any other on its machine by naming its port. So it is called there, under its new name.
"""

from __future__ import annotations

import logging
import threading

from pnode.errors import PNodeError
from pnode.orchestrator.issuing import IssuedPasses, Issuer
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode
from pnode.v1 import node_pb2

log = logging.getLogger(__name__)

# Each keeps a thread of the control lane waiting; heartbeats need the others.
_AT_ONCE = 2
# What a node says of itself is small.
_REPLY_BYTES = 1 << 20


class Succession:
    """Asks the one who answers at an address. Thread-safe."""

    def __init__(self, issuer: Issuer, *, tls: bool, patience_s: float) -> None:
        self._issuer = issuer
        self._tls = tls
        self._patience_s = patience_s
        self._places = threading.Semaphore(_AT_ONCE)

    def proven(self, address: str, node_uuid: str, deadline: Deadline) -> bool:
        """Whether this node is who answers at this address, so that no other member can be there.

        With TLS its certificate says so, or there is no connection. On plain loopback its own word does: a live member
        would give its own UUID, and takes no token that is meant for another. Where too many are asked, nobody is.
        """
        if not self._places.acquire(blocking=False):
            return False
        try:
            return self._answers(address, node_uuid, deadline.at_most(min(self._patience_s, deadline.left_s() / 2)))
        finally:
            self._places.release()

    def _answers(self, address: str, node_uuid: str, deadline: Deadline) -> bool:
        # Passes of its own: until it is proven, the orchestrator's calls to this address are for the member there.
        passes = IssuedPasses(self._issuer, tls=self._tls)
        passes.expect(address, node_uuid)
        try:
            with ChannelPool(max_message_bytes=_REPLY_BYTES, passes=passes) as channels:
                reply = RemoteNode(channels, address).inspect(node_pb2.InspectRequest(), deadline)
        except PNodeError as error:
            log.info("node %s is not who answers at %s: %s", node_uuid, address, error)
            return False
        return reply.node_uuid == node_uuid
