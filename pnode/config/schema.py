"""Every setting, with its type, its range and its help. Defaults stand in conf/, beside the environment's names."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pnode.config.rates import fault_rates
from pnode.config.units import (
    Bytes,
    Flag,
    Number,
    OptionalText,
    Percent,
    Port,
    Seconds,
    Text,
    Whole,
    nothing_as_none,
    whole,
)

Role = Literal["node", "orchestrator", "devnet", "selftest"]
Count = Annotated[Whole, Field(ge=1, le=1_000_000)]


class Section(BaseModel):
    """A group of keys. Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class NodeSection(Section):
    """One PNode."""

    uuid: OptionalText = Field(
        description="identity, bound to this node's key; without it the UUID follows from the key"
    )
    host: Text = Field(description="address to serve on; beyond loopback with TLS alone")
    advertise: OptionalText = Field(description="address that others reach it at, where that is not host")
    port: Port = Field(description="port to serve on; 0: the system chooses")
    data_dir: Text = Field(min_length=1, description="folder for the keys and the default store")
    num_threads: Annotated[Whole, Field(ge=1, le=256)] = Field(description="kernel threads of one VNode")
    start_s: Seconds = Field(description="longest start of the sandbox; kernels are compiled in the first one")
    join_s: Seconds = Field(description="longest wait for the first answer of the orchestrator")
    drain_s: Seconds = Field(description="longest wait for running calls when the node leaves")

    @field_validator("uuid")
    @classmethod
    def _canonical(cls, value: str | None) -> str | None:
        try:
            return None if value is None else str(uuid.UUID(value))
        except ValueError:
            raise ValueError(f"expected a UUID, got {value[:60]!r}" if value else "expected a UUID") from None


class LimitsSection(Section):
    """What the operator of a node grants to all VNodes on it."""

    memory: Annotated[Bytes | None, BeforeValidator(nothing_as_none)] = Field(
        description="memory for all VNodes together; without it half of the machine's"
    )
    max_vnodes: Annotated[Whole, Field(ge=1, le=4096)] = Field(description="VNodes at once")
    message: Annotated[Bytes, Field(ge=65536, le=2**31 - 65536)] = Field(
        description="largest message of a call; an orchestrator takes 4MiB at most"
    )
    whole: Annotated[Bytes, Field(ge=65536, le=2**40)] = Field(description="largest message of a call in pieces")
    queue: Annotated[Whole, Field(ge=1, le=4096)] = Field(description="calls that may wait for one VNode")
    queue_per_client: Annotated[Whole, Field(ge=1, le=4096)] = Field(description="of these, from one client")
    disk: Annotated[Bytes | None, BeforeValidator(nothing_as_none)] = Field(
        description="space in the store for what this node uploads: of each VNode its kept states and one more"
    )
    in_flight: Annotated[Bytes, Field(ge=2**20)] = Field(description="memory for messages that are here at once")
    disk_free: Bytes = Field(description="space that checkpoints leave free on the disk of a file:// store")


class PressureSection(Section):
    """When memory counts as short: a node then refuses new work, drains, and at last ends its newest VNode."""

    stalled: Percent = Field(description="per cent of ten seconds in which programs wait for memory: refuse new work")
    badly_stalled: Percent = Field(description="the same, at which no step waits for the one before it")
    free: Percent = Field(description="per cent of memory, of the machine or its cgroup: with less, refuse new work")
    badly_free: Percent = Field(description="the same, below which no step waits for the one before it")
    patience_s: Seconds = Field(description="how long a step may take to help before the next one")
    peace_s: Seconds = Field(description="how long there must be memory until new work is taken again")

    @model_validator(mode="after")
    def _ordered(self) -> PressureSection:
        for name, lower, upper in (
            ("stalled", self.stalled, self.badly_stalled),
            ("free", self.badly_free, self.free),
        ):
            if lower > upper:
                raise ValueError(f"badly_{name} is reached before {name}: the worse of the two must come later")
        return self


class SandboxSection(Section):
    """The box around each VNode."""

    require: Text = Field(description="layers without which a node does not start, as [seccomp,landlock,uid]; or none")

    @field_validator("require")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("none", "[]") and not re.fullmatch(
            r"\[?(seccomp|landlock|uid)(,(seccomp|landlock|uid))*\]?", value
        ):
            raise ValueError(f"expected [seccomp,landlock,uid], some of them, or none, got {value[:60]!r}")
        return value

    @property
    def required(self) -> tuple[str, ...]:
        """`require` as names."""
        return tuple(re.findall(r"seccomp|landlock|uid", self.require))


class TlsSection(Section):
    """Certificates, issued by the orchestrator when a node or a driver joins."""

    mode: Literal["auto", "on"] = Field(description="auto: TLS for everything beyond loopback; on: for loopback too")
    certificate_s: Seconds = Field(description="life of a certificate; renewed after a quarter of it")


class RpcSection(Section):
    """Calls."""

    token_s: Seconds = Field(description="life of a call token; half of it outlasts an outage of the orchestrator")
    addresses: Literal["own", "any"] = Field(
        description="own: a peer elsewhere may name neither our loopback nor a third party; any: not checked"
    )
    compression: Literal["none", "zstd"] = Field(description="of tensors in calls to VNodes: none or zstd")
    default_deadline_s: Seconds = Field(description="deadline of calls that bring none")
    max_deadline_s: Seconds = Field(description="longest deadline of any call")
    receive_s: Seconds = Field(description="longest time that a message may take to come")


class OrchestratorSection(Section):
    """The orchestrator: where a node finds it, and how one is run."""

    address: OptionalText = Field(description="host:port that a node joins; with TLS host:port#sha256:FINGERPRINT")
    enrolment: Text = Field(repr=False, description="secret that all of a network share; empty: anybody may join")
    host: Text = Field(description="address that role=orchestrator serves on")
    port: Port = Field(description="port that role=orchestrator serves on; 0: the system chooses")
    member_port: Port = Field(description="with TLS its port for those who have joined; 0: the system chooses")
    heartbeat_s: Seconds = Field(description="time between heartbeats of its nodes")
    missed: Annotated[Whole, Field(ge=1, le=1000)] = Field(description="missed heartbeats until a node is lost")
    drain_s: Seconds = Field(description="longest drain of a node")
    lease_s: Seconds = Field(description="how long a silent driver keeps its run")
    min_nodes: Count = Field(description="nodes to wait for before a run is placed for the first time")
    spread: Flag = Field(description="prefer nodes that hold no VNode of the run yet")
    pins: Text = Field(description="VNodes tied to nodes, as VNODE=UUID,VNODE=UUID")

    @field_validator("pins")
    @classmethod
    def _pairs(cls, value: str) -> str:
        if value and not re.fullmatch(r"[\w.-]+=[0-9a-f-]{36}(,[\w.-]+=[0-9a-f-]{36})*", value, re.ASCII):
            raise ValueError(f"expected VNODE=UUID,VNODE=UUID, got {value[:60]!r}")
        return value

    @property
    def pinned(self) -> dict[str, str]:
        """`pins` as a mapping from VNode to node."""
        pairs = (pair.partition("=") for pair in self.pins.split(",") if pair)
        return {vnode: node for vnode, _, node in pairs}


class DriverSection(Section):
    """Who drives a run: the devnet, or a program of its own."""

    data_dir: OptionalText = Field(
        description="folder for a driver's key, by which it takes its run over at once when it comes back; "
        "without it each process has a new key"
    )


class S3Section(Section):
    """A bucket; credentials come by boto3's own chain and never by a key here."""

    bucket: OptionalText = Field(description="keep state in this S3 bucket")
    prefix: Text = Field(description="before all keys in the bucket")
    endpoint: OptionalText = Field(description="URL of an S3 server other than Amazon's")
    region: OptionalText = Field(description="region of the bucket")


class StoreSection(Section):
    """Where checkpoints are kept. The orchestrator and its nodes need the same."""

    url: OptionalText = Field(description="file:///folder or s3://bucket/prefix; without it data_dir/store")
    s3: S3Section

    @model_validator(mode="after")
    def _one(self) -> StoreSection:
        if self.url is not None and self.s3.bucket is not None:
            raise ValueError("url and s3.bucket (S3_BUCKET) are both set: one store is expected")
        return self


def _kill(value: Any) -> str:
    if value in ("random", "none"):
        return str(value)
    try:
        step = whole(value)
    except ValueError:
        step = -1
    if step < 0:
        raise ValueError(f"expected random, none or the number of a step, got {value!r}")
    return str(step)


def _faults(value: Any) -> str:
    text = "none" if value is None else str(value)
    fault_rates(text)
    return text or "none"


class DevnetSection(Section):
    """role=devnet: an orchestrator and its nodes on this machine."""

    nodes: Annotated[Whole, Field(ge=1, le=64)] = Field(description="PNodes to start")
    kill: Annotated[str, BeforeValidator(_kill)] = Field(description="SIGKILL a PNode mid-run: random, none, or a step")
    kills: Annotated[Whole, Field(ge=1, le=63)] = Field(description="how many PNodes to kill")
    faults: Annotated[str, BeforeValidator(_faults)] = Field(
        description="none, or rates: of calls drop, duplicate, delay, reorder, of steps kill; as drop:0.05,kill:0.01"
    )
    seed: Annotated[Whole | None, BeforeValidator(nothing_as_none)] = Field(
        description="of kills and faults; without it the system's entropy, which the report names"
    )
    placement: Literal["spread", "one-three"] = Field(
        description="spread: stages apart; one-three: stages 1 and 3 on one PNode"
    )
    folder: Text = Field(min_length=1, description="where the run's folder is made")
    heartbeat_s: Seconds = Field(description="time between heartbeats")
    reference: Flag = Field(description="train the same job in one process and compare digests")

    @property
    def rates(self) -> dict[str, float]:
        """`faults` by kind."""
        return fault_rates(self.faults)


class JobSection(Section):
    """What is trained."""

    name: Literal["digits"] = Field(description="the job")
    stages: Annotated[Whole, Field(ge=1, le=64)] = Field(description="VNodes that the model is cut into")
    microbatches: Annotated[Whole, Field(ge=1, le=64)] = Field(description="microbatches of a batch, all in flight")
    steps: Count = Field(description="training steps")
    batch: Annotated[Whole, Field(ge=1, le=1024)] = Field(description="rows of a whole batch")
    seed: Annotated[Whole, Field(ge=0, lt=2**64)] = Field(description="of initial parameters and batch order")
    profile: Literal["samebits-1", "torch"] = Field(description="numerics: samebits-1 or torch")
    lr: Annotated[Number, Field(gt=0, lt=1000)] = Field(description="AdamW's learning rate")
    weight_decay: Annotated[Number, Field(ge=0, lt=1000)] = Field(description="AdamW's weight decay")
    warmup: Annotated[Whole, Field(ge=0)] = Field(description="steps of linear warm-up")
    checkpoint: Annotated[Whole, Field(ge=0)] = Field(description="steps between checkpoints; 0: only at the end")
    keep: Annotated[Whole, Field(ge=1, le=1000)] = Field(description="checkpoints to keep")
    memory: Bytes = Field(description="memory limit of one VNode")
    cpu_s: Seconds = Field(description="processor time limit of one command of a VNode")
    wall_s: Seconds = Field(description="wall clock limit of one command of a VNode")

    @model_validator(mode="after")
    def _consistent(self) -> JobSection:
        if self.microbatches > self.batch:
            raise ValueError(f"microbatches={self.microbatches} is more than the {self.batch} rows of a batch")
        return self


class LogSection(Section):
    """Logs, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(description="least level: debug, info, warning, error")
    format: Literal["plain", "json"] = Field(description="plain lines or JSON lines")


class Settings(Section):
    """All of it."""

    role: Role = Field(description="node, orchestrator, devnet or selftest")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto, cpu or cuda")
    node: NodeSection
    limits: LimitsSection
    pressure: PressureSection
    sandbox: SandboxSection
    tls: TlsSection
    rpc: RpcSection
    orchestrator: OrchestratorSection
    driver: DriverSection
    store: StoreSection
    devnet: DevnetSection
    job: JobSection
    log: LogSection
