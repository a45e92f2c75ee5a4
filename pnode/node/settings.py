"""What one PNode is told: the configuration, already checked, in the units that the names carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pnode.node.pressure import Thresholds
from pnode.transport.weather import Weather


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """Settings of one PNode. Every number is in the unit that its name carries."""

    # As the orchestrator prints it: with a fingerprint, everything is by TLS.
    orchestrator_address: str
    enrolment: str = field(default="", repr=False)
    any_address: bool = False
    data_dir: Path
    uuid: str | None = None
    host: str = "127.0.0.1"
    port: int = 50051
    # The host that others reach this node at, where it is not the one that it binds.
    advertise: str | None = None
    device: str = "cpu"
    num_threads: int = 1
    max_vnodes: int = 16
    vnode_memory_bytes: int | None = None
    disk_bytes: int | None = None
    pressure: Thresholds = field(default_factory=Thresholds)
    max_message_bytes: int = 64 << 20
    # In pieces.
    max_whole_bytes: int = 256 << 20
    # Whether the tensors of calls to peers are compressed on their way.
    compresses: bool = False
    max_queue: int = 64
    max_queue_per_client: int = 16
    in_flight_bytes: int = 512 << 20
    require_layers: tuple[str, ...] = ("seccomp",)
    # Calls to VNodes at once. It must cover the windows of all VNodes here, or a chain that comes back to this node
    # could find no thread; idle threads are never made.
    max_calls: int = 256
    drain_s: float = 30.0
    join_s: float = 60.0
    default_deadline_s: float = 60.0
    max_deadline_s: float = 600.0
    receive_s: float = 20.0
    start_s: float = 300.0
    weather: Weather | None = None
    peer_backoff_s: float = 0.05
    peer_backoff_cap_s: float = 1.0
    reconnect_backoff_s: float = 0.5
