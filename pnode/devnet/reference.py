"""The same job in one process, without any network: uncut, a batch at a time. Run as a child of the devnet:

    python -P -m pnode.devnet.reference --config FILE --parent PID

One JSON line on stdout for each step, and one at the end with the digest. This is the only part of the devnet's own
that imports torch.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from collections.abc import Sequence

from pnode import cli
from pnode.client.accuracy import accuracy
from pnode.config import load
from pnode.errors import PNodeError
from pnode.jobs.catalog import make_job
from pnode.jobs.job import Job
from pnode.observe import logs
from pnode.sandbox.confinement import die_with_parent


def main(argv: Sequence[str]) -> int:
    """Train; returns the exit code."""
    arguments = cli.parse(argv)
    if arguments.parent is not None and not die_with_parent(arguments.parent):
        return cli.EXIT_FAILED
    # A crash in compiled code must not end without a word.
    faulthandler.enable()
    try:
        settings = load(arguments.overrides, arguments.file)
        logs.configure(settings.log.level, settings.log.format)
        train(make_job(settings.job), settings.device)
    except PNodeError as error:
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        return cli.EXIT_FAILED
    return 0


def train(job: Job, device: str) -> None:
    """The whole job, told line by line.

    With samebits-1 the model is uncut, a batch is one microbatch and every core computes: the bits must be the same.
    The profile `torch` promises that only for the same cut, the same microbatches and the same threads.
    """
    _say({"event": "loading"})
    from pnode.client.local import LocalRun  # noqa: PLC0415 - torch takes seconds; the line above comes first

    exact = job.profile == "samebits-1"
    specs = job.cut("reference", stages=1 if exact else job.stages)
    num_microbatches = 1 if exact else job.num_microbatches
    num_threads = len(os.sched_getaffinity(0)) if exact else 1
    run = LocalRun(specs, device=_device(device, exact=exact), num_threads=num_threads)
    started = time.monotonic()
    for step in range(job.steps):
        loss = run.step(step, job.batch(step), num_microbatches)
        _say({"event": "step", "step": step, "loss": loss})
    _say(
        {
            "event": "done",
            "digest": run.digest(),
            "test_accuracy": accuracy(run.forward(job.test)[0], job.test),
            "numerics_class": run.numerics_class,
            "num_threads": num_threads,
            "seconds": time.monotonic() - started,
        }
    )


def _device(configured: str, *, exact: bool) -> str:
    if exact or configured == "cpu":
        return "cpu"
    import torch  # noqa: PLC0415 - of this process alone

    return "cuda" if torch.cuda.is_available() else "cpu"


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
