"""A driver in a process of its own, which dies by SIGKILL at a moment that it was told: `python mortal_driver.py JSON`.

JSON: `orchestrator`, `holder`, `settings` (overrides), `dies`: "" or the call and step whose first answer is its last.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

from pnode.client import events
from pnode.client.driver import Driver, DriverSettings
from pnode.config import load
from pnode.jobs.catalog import make_job
from pnode.roles import driver_passes
from pnode.transport.addresses import parse_orchestrator
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteOrchestrator, RemoteRuns, RemoteVNode
from pnode.v1 import orchestrator_pb2

RUN = "mortal"


def tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def heard(event: events.Event) -> None:
    tell({"event": type(event).__name__, **asdict(event)})


class Mortal(RemoteVNode):
    """VNodes at an address. What has just been answered is the last that this process learns."""

    dies = ""

    def _asked(self, name: str, head: Any, send: Any, read: Any, deadline: Deadline) -> Any:
        answer = super()._asked(name, head, send, read, deadline)
        if self.dies == f"{name}:{getattr(head, 'step', '')}":
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


def main() -> None:
    told = json.loads(sys.argv[1])
    Mortal.dies = told["dies"]
    configured = load(told["settings"])
    job = make_job(configured.job)
    where = str(parse_orchestrator(told["orchestrator"]).address)
    settings = DriverSettings(
        steps=job.steps,
        num_microbatches=job.num_microbatches,
        checkpoint_every=job.checkpoint.every_steps,
        holder=told["holder"],
    )
    spec = orchestrator_pb2.RunSpec(id=RUN, vnodes=job.cut(RUN))
    with (
        ChannelPool(passes=driver_passes(configured, told["orchestrator"])) as channels,
        Driver(
            spec,
            settings,
            job.batch,
            runs=RemoteRuns(channels, where),
            orchestrator=RemoteOrchestrator(channels, where),
            vnodes=lambda address: Mortal(channels, address),
            on_event=heard,
        ) as driver,
    ):
        final = driver.train()
        tell({"event": "done", "sha256": [record.sha256 for record in final.records]})
        driver.finish()


if __name__ == "__main__":
    main()
