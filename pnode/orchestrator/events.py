"""What the core is told: by nodes, by drivers, by the clock, and by the executor about its actions."""

from __future__ import annotations

from dataclasses import dataclass

from pnode.errors import PNodeError
from pnode.orchestrator.actions import Allocate, Asked, Commit, Open, Probe, Restore, Snapshot
from pnode.storage.manifest import RunManifest
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

# From nodes


@dataclass(frozen=True)
class NodeRegistered:
    """A node joins, or comes back.

    `successor_of`: the incarnation of a member that had the same address, and is proven not to be there any more; or 0.
    """

    uuid: str
    address: str
    capabilities: node_pb2.Capabilities
    boot: str = ""
    successor_of: int = 0


@dataclass(frozen=True)
class NodeBeat:
    """A heartbeat."""

    uuid: str
    incarnation: int
    load: node_pb2.Load
    hosted: tuple[node_pb2.HostedVNode, ...]
    draining: bool


@dataclass(frozen=True)
class NodeLeft:
    """A node leaves in good order, with the states that it uploaded."""

    uuid: str
    incarnation: int
    reason: str
    records: tuple[vnode_pb2.StateRecord, ...]


@dataclass(frozen=True)
class FailureReported:
    """Somebody could not use a VNode. `reporter` is empty for a driver."""

    reporter: str
    fence: vnode_pb2.Fence
    reason: str
    message: str


# From drivers


@dataclass(frozen=True)
class RunSubmitted:
    """A driver asks for a run. `fresh_lease` becomes the lease if a new one is due; `owner` as `leases` has it."""

    spec: orchestrator_pb2.RunSpec
    holder: str
    fresh_lease: str
    nonce: str = ""
    owner: str = ""


@dataclass(frozen=True)
class LeaseRenewed:
    """The driver is still there."""

    run: str
    lease: str
    owner: str = ""


@dataclass(frozen=True)
class CheckpointAsked:
    """Commit the run at a version; the answer goes to `ticket`."""

    run: str
    lease: str
    generation: int
    version: int
    cursor: int
    ticket: int
    owner: str = ""


@dataclass(frozen=True)
class RunFinished:
    """The driver is done with the run."""

    run: str
    lease: str
    owner: str = ""


@dataclass(frozen=True)
class Ticked:
    """Time has passed."""


# From the executor


@dataclass(frozen=True)
class Stored:
    """A committed run manifest under its digest."""

    sha256: str
    manifest: RunManifest


@dataclass(frozen=True)
class Opened:
    """The generation that was taken, and the run's readable manifests, newest first."""

    action: Open
    generation: int
    history: tuple[Stored, ...]


@dataclass(frozen=True)
class Allocated:
    """The node took the VNode in."""

    action: Allocate


@dataclass(frozen=True)
class Restored:
    """The VNode stands at the record's version, in the new generation."""

    action: Restore


@dataclass(frozen=True)
class Snapshotted:
    """The VNode's state is in the store."""

    action: Snapshot
    record: vnode_pb2.StateRecord


@dataclass(frozen=True)
class Committed:
    """The manifest is the newest one, as it now stands in the store."""

    action: Commit
    stored: Stored


@dataclass(frozen=True)
class Probed:
    """The node answered."""

    action: Probe
    reply: node_pb2.InspectReply


@dataclass(frozen=True)
class Failed:
    """An action came to nothing, or nobody knows what it came to."""

    action: Asked
    error: PNodeError


Event = (
    NodeRegistered
    | NodeBeat
    | NodeLeft
    | FailureReported
    | RunSubmitted
    | LeaseRenewed
    | CheckpointAsked
    | RunFinished
    | Ticked
    | Opened
    | Allocated
    | Restored
    | Snapshotted
    | Committed
    | Probed
    | Failed
)
