"""What the orchestrator is told: the configuration, already checked, in the units that the names carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pnode.transport.weather import Weather


@dataclass(frozen=True, kw_only=True)
class OrchestratorSettings:
    """Settings of one orchestrator. Every number is in the unit that its name carries.

    `spread` prefers a node that holds no other VNode of the run. `pins` names the node of a VNode: it is waited for
    when a run is placed for the first time, and is a preference afterwards. `min_nodes` holds the first placement of
    every run back until so many nodes could take part. `keys` is the folder of the authority's keys; without one they
    live as long as the process. With `tls`, `port` is the door and `member_port` all the rest.
    """

    host: str = "127.0.0.1"
    port: int = 50050
    member_port: int = 0
    tls: bool = False
    keys: Path | None = None
    enrolment: str = field(default="", repr=False)
    any_address: bool = False
    certificate_s: float = 86_400.0
    token_s: float = 7200.0
    max_message_bytes: int = 64 << 20
    in_flight_bytes: int = 512 << 20
    receive_s: float = 20.0
    default_deadline_s: float = 30.0
    max_deadline_s: float = 600.0

    heartbeat_s: float = 30.0
    missed_heartbeats: int = 3
    drain_s: float = 120.0
    lease_s: float = 60.0
    tick_s: float = 0.25

    spread: bool = False
    pins: Mapping[str, str] = field(default_factory=dict)
    min_nodes: int = 1

    allocate_s: float = 10.0
    restore_s: float = 120.0
    snapshot_s: float = 120.0
    probe_s: float = 5.0
    release_s: float = 5.0

    max_losses: int = 5
    retry_s: float = 0.1
    retry_cap_s: float = 5.0
    avoid_s: float = 5.0
    max_nodes: int = 1024
    max_runs: int = 256
    max_run_vnodes: int = 256
    num_threads: int = 16
    weather: Weather | None = None
