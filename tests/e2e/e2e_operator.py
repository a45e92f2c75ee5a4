"""An operator: whoever can read the orchestrator's keys may ask its nodes what the orchestrator may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from pnode.devnet.child import Child
from pnode.errors import Unauthenticated
from pnode.orchestrator.issuing import IssuedPasses, Issuer
from pnode.security.authority import Authority
from pnode.security.principals import DRIVER, Principal
from pnode.transport import methods
from pnode.transport.addresses import Address
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.passes import Metadata, with_token
from pnode.transport.remote import RemoteNode
from pnode.v1 import node_pb2, vnode_pb2


class Operator(IssuedPasses):
    """Passes to nodes, by the keys in an orchestrator's folder. VNodes are called as by a driver."""

    def __init__(self, data_dir: Path) -> None:
        self._tokens = Issuer(Authority.kept(data_dir / "authority"), token_s=600.0, certificate_s=600.0)
        super().__init__(self._tokens, tls=False)

    def metadata(self, service: str, address: Address, request: Message, deadline: Deadline) -> Metadata:
        if service == methods.VNODES.full_name:
            named: Any = request
            fence = getattr(named, "fence", None) or vnode_pb2.Fence(run=named.run, vnode=named.vnode)
            return with_token(self._tokens.vnode_token(Principal(DRIVER), fence, ("describe", "forward")))
        return super().metadata(service, address, request, deadline)


@contextmanager
def pool_to(node: Child, orchestrator: Child, deadline_s: float = 30.0) -> Iterator[ChannelPool]:
    """Channels of an operator to a node that has joined. Each of both keeps its keys in a folder beside its log."""
    passes = Operator(orchestrator.log.with_suffix(""))
    passes.expect(node.address, str((node.serving or {})["uuid"]))
    deadline = Deadline.after(deadline_s)
    with ChannelPool(passes=passes) as pool:
        while not _knows_us(pool, node):
            assert not deadline.passed, node.tail(20)
            assert not node.wait_end(0.05), node.tail(20)
        yield pool


def _knows_us(pool: ChannelPool, node: Child) -> bool:
    try:
        RemoteNode(pool, node.address).inspect(node_pb2.InspectRequest(), Deadline.after(10))
    except Unauthenticated:
        return False
    return True
