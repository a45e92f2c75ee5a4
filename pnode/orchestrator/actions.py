"""What the core wants done. Each action but Release and Answer comes back as exactly one event.

Actions are values: the event carries the action that it answers, and with it the generation under which it was asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pnode.errors import PNodeError
from pnode.orchestrator.topology import Location
from pnode.storage.manifest import RunManifest
from pnode.v1 import orchestrator_pb2, spec_pb2, vnode_pb2


@dataclass(frozen=True)
class Open:
    """Take a new generation of the run in the store, at least `at_least`, and read the run's manifests."""

    run: str
    attempt: int
    at_least: int


@dataclass(frozen=True)
class Allocate:
    """Give a VNode to a node."""

    location: Location
    generation: int
    spec: spec_pb2.VNodeSpec
    record: vnode_pb2.StateRecord
    upstream: vnode_pb2.Fence = field(default_factory=vnode_pb2.Fence)


@dataclass(frozen=True)
class Restore:
    """Have a VNode adopt the generation and the state of a record."""

    location: Location
    generation: int
    record: vnode_pb2.StateRecord
    upstream: vnode_pb2.Fence = field(default_factory=vnode_pb2.Fence)


@dataclass(frozen=True)
class Snapshot:
    """Have a VNode upload its state at a version."""

    location: Location
    generation: int
    version: int


@dataclass(frozen=True)
class Commit:
    """Make a run manifest the newest one, then keep only so many."""

    run: str
    manifest: RunManifest
    keep: int


@dataclass(frozen=True)
class Probe:
    """See whether a node answers, and what it hosts."""

    node_uuid: str
    incarnation: int
    address: str


@dataclass(frozen=True)
class Release:
    """Take a VNode from a node, if it can be reached; heartbeats tell it again. Nobody waits for the outcome."""

    location: Location
    generation: int


@dataclass(frozen=True)
class Answer:
    """Answer the calls that wait under these tickets."""

    tickets: tuple[int, ...]
    outcome: orchestrator_pb2.CheckpointReply | PNodeError


Action = Open | Allocate | Restore | Snapshot | Commit | Probe | Release | Answer
# Those that come back, as the success event of their kind or as Failed.
Asked = Open | Allocate | Restore | Snapshot | Commit | Probe
