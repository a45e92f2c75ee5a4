"""What comes from outside is checked here, before the core sees it: one clear error for each fault."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

from pnode.errors import BadRequest, SpecError
from pnode.transport import protocol
from pnode.transport.addresses import parse_address
from pnode.v1 import orchestrator_pb2, vnode_pb2
from pnode.vnode.chain import validate_chain

# Names of runs become keys in the store.
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_HOLDER = 200
_MAX_NONCE = 100
_MAX_HOSTED = 4096
_MAX_TEXT = 2000


def node_uuid(text: str) -> str:
    """A node's UUID in canonical form. Raises BadRequest."""
    try:
        canonical = str(uuid.UUID(text))
    except ValueError:
        canonical = ""
    if canonical != text:
        raise BadRequest(f"node_uuid {text[:100]!r} is not a UUID in canonical form")
    return text


def registration(request: orchestrator_pb2.RegisterRequest) -> int:
    """The version of the wire to speak with a node. Raises BadRequest for one that cannot be a member."""
    node_uuid(request.node_uuid)
    parse_address(request.address)
    agreed = protocol.agreed(request.protocol_min or request.protocol, request.protocol, "the node")
    if not request.capabilities.numerics_classes:
        raise BadRequest("capabilities.numerics_classes is empty: this node could host nothing")
    nonce("boot", request.boot)
    return agreed


def heartbeat(request: orchestrator_pb2.HeartbeatRequest) -> None:
    """Raises BadRequest."""
    node_uuid(request.node_uuid)
    _bounded("vnodes", request.vnodes)


def departure(request: orchestrator_pb2.UnregisterRequest) -> tuple[vnode_pb2.StateRecord, ...]:
    """The records of a node that leaves. Raises BadRequest."""
    node_uuid(request.node_uuid)
    _bounded("records", request.records)
    for record in request.records:
        state_record(record, record.vnode, record.version)
    return tuple(request.records)


def state_record(record: vnode_pb2.StateRecord, vnode: str, version: int) -> vnode_pb2.StateRecord:
    """A record that a node made of a VNode at a version. Raises BadRequest."""
    if (record.vnode, record.version) != (vnode, version):
        raise BadRequest(f"a record of {vnode!r} at {version} was expected, not {record.vnode!r} at {record.version}")
    if _SHA256.fullmatch(record.sha256) is None or record.size_bytes == 0:
        raise BadRequest(f"the record of {vnode!r} does not name a blob")
    return record


def run_spec(spec: orchestrator_pb2.RunSpec, max_vnodes: int) -> None:
    """Raises SpecError with the path of the offending field."""
    if _RUN_ID.fullmatch(spec.id) is None:
        raise SpecError("id", f"{spec.id[:100]!r} is no name of a run: letters, digits, '.', '_' and '-', 100 at most")
    if not 1 <= len(spec.vnodes) <= max_vnodes:
        raise SpecError("vnodes", f"a run has 1 to {max_vnodes} VNodes, not {len(spec.vnodes)}")
    validate_chain(spec.vnodes)
    if spec.vnodes[0].run != spec.id:
        raise SpecError("vnodes[0].run", f"{spec.vnodes[0].run!r} is not the run's id {spec.id!r}")


def holder(text: str) -> str:
    """Who asks for a lease. Raises BadRequest."""
    if not 1 <= len(text) <= _MAX_HOLDER:
        raise BadRequest(f"holder has 1 to {_MAX_HOLDER} characters")
    return text


def nonce(name: str, text: str) -> str:
    """What names the life of a process. Raises BadRequest."""
    if len(text) > _MAX_NONCE:
        raise BadRequest(f"{name} has {_MAX_NONCE} characters at most")
    return text


def clipped(text: str) -> str:
    """Words of a peer, cut to a length that logs and messages can bear."""
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + " ..."


def _bounded(name: str, items: Sequence[object]) -> None:
    if len(items) > _MAX_HOSTED:
        raise BadRequest(f"{name} has {len(items)} entries; {_MAX_HOSTED} at most are read")
