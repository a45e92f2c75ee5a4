"""A devnet run before anything starts: its folder, its nodes, its children's configuration, its kills."""

from __future__ import annotations

import random
import secrets
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pnode.config import Settings
from pnode.errors import ConfigError

# A kill comes in the middle of the run: after the first checkpoints, with something left to replay and to train.
_FIRST_SHARE, _LAST_SHARE = 0.15, 0.85
# Deaths are found by failing calls, which take milliseconds; heartbeats are for what nobody calls, and a busy
# machine may be late with them.
_MISSED = 10
_LEASE_S = 30.0


@dataclass(frozen=True)
class Kill:
    """SIGKILL to a node during a step: after `fraction` of a step's usual time. `draw` in [0, 1) chooses the node.

    `returns`: the node is started again, as its owner's machine would start it.
    """

    step: int
    fraction: float
    draw: float
    returns: bool = False


@dataclass(frozen=True)
class Plan:
    """A run as planned. `seed` is the one that the kills came from."""

    run: str
    folder: Path
    nodes: dict[str, str]
    seed: int
    kills: list[Kill] = field(default_factory=list)

    def path(self, *parts: str) -> Path:
        """A path in the run's folder; folders on the way are made."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def make_plan(settings: Settings) -> Plan:
    """Make the run's folder and decide everything that is random. Raises ConfigError for what cannot be."""
    devnet, job = settings.devnet, settings.job
    _check(settings)
    seed = devnet.seed if devnet.seed is not None else secrets.randbits(32)
    run = f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = Path(devnet.folder).expanduser().absolute() / run
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"devnet.folder: {devnet.folder}: {error.strerror}") from None
    nodes = {f"node-{number}": str(uuid.uuid4()) for number in range(1, devnet.nodes + 1)}
    once = plan_kills(devnet.kill, devnet.kills, job.steps, seed)
    now_and_then = plan_faults(devnet.rates["kill"], job.steps, seed)
    return Plan(run, folder, nodes, seed, sorted([*once, *now_and_then], key=lambda kill: kill.step))


def _check(settings: Settings) -> None:
    devnet, job = settings.devnet, settings.job
    if devnet.kill != "none":
        if devnet.kills >= devnet.nodes:
            raise ConfigError(f"devnet.kills: {devnet.kills} of {devnet.nodes} nodes would leave none")
        if devnet.kill != "random" and int(devnet.kill) >= job.steps:
            raise ConfigError(f"devnet.kill: there is no step {devnet.kill}; steps are 0 to {job.steps - 1}")
    if devnet.placement == "one-three" and (job.stages < 3 or devnet.nodes < 2):
        raise ConfigError("devnet.placement: one-three needs three stages and two nodes at least")


def plan_kills(kill: str, num: int, steps: int, seed: int) -> list[Kill]:
    """The kills, by ascending step."""
    if kill == "none":
        return []
    rng = random.Random(seed)  # noqa: S311 - where to hurt, not what to hide
    first, last = int(steps * _FIRST_SHARE), max(int(steps * _LAST_SHARE), 1)
    at = [rng.randrange(first, last) if kill == "random" else int(kill) for _ in range(num)]
    return [Kill(step, rng.random(), rng.random()) for step in sorted(at)]


def plan_faults(rate: float, steps: int, seed: int) -> list[Kill]:
    """Kills at this rate of steps, from the first step on, of nodes that return."""
    rng = random.Random(f"{seed} kills")  # noqa: S311 - where to hurt, not what to hide
    drawn = [(step, rng.random(), rng.random(), rng.random()) for step in range(steps)]
    return [Kill(step, fraction, draw, returns=True) for step, chance, fraction, draw in drawn if chance < rate]


def pins(settings: Settings, nodes: dict[str, str]) -> str:
    """Stages 1 and 3 on the first node, the others in turn on the rest; nothing where stages are spread."""
    if settings.devnet.placement == "spread":
        return ""
    first, *others = nodes.values()
    places = {"stage1": first, "stage3": first}
    for index, stage in enumerate(f"stage{number}" for number in range(1, settings.job.stages + 1)):
        places.setdefault(stage, others[index % len(others)])
    return ",".join(f"{stage}={node}" for stage, node in sorted(places.items()))


def with_own_store(settings: Settings, plan: Plan) -> Settings:
    """The settings with a store in the run's folder, unless one is configured."""
    if settings.store.url is not None or settings.store.s3.bucket is not None:
        return settings
    store = settings.store.model_copy(update={"url": (plan.folder / "store").as_uri()})
    return settings.model_copy(update={"store": store})


def with_seed(settings: Settings, plan: Plan) -> Settings:
    """The settings with the seed of the plan, where they had none."""
    return settings.model_copy(update={"devnet": settings.devnet.model_copy(update={"seed": plan.seed})})


def orchestrator_changes(settings: Settings, plan: Plan) -> dict[str, Any]:
    """What the orchestrator of the devnet is told beyond the devnet's own settings."""
    return {
        "role": "orchestrator",
        "orchestrator.port": 0,
        "orchestrator.member_port": 0,
        "node.data_dir": str(plan.folder / "orchestrator"),
        "orchestrator.heartbeat_s": settings.devnet.heartbeat_s,
        "orchestrator.missed": max(settings.orchestrator.missed, _MISSED),
        "orchestrator.lease_s": _LEASE_S,
        "orchestrator.min_nodes": settings.devnet.nodes,
        "orchestrator.spread": settings.devnet.placement == "spread",
        "orchestrator.pins": pins(settings, plan.nodes),
        "devnet.seed": plan.seed,
    }


def node_changes(settings: Settings, plan: Plan, name: str, orchestrator: str) -> dict[str, Any]:
    """What a node of the devnet is told."""
    return {
        "role": "node",
        "node.uuid": plan.nodes[name],
        "node.port": 0,
        "node.data_dir": str(plan.folder / name),
        "orchestrator.address": orchestrator,
        "devnet.seed": plan.seed,
    }


def write_config(settings: Settings, changes: dict[str, Any], path: Path) -> Path:
    """A child's whole configuration as a file: what the parent was told, with changes; the environment adds nothing."""
    content = settings.model_dump(mode="json")
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section[name]
        section[last] = value
    # The enrolment secret may be in it.
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
