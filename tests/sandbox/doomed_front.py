"""A front that starts a zygote and two workers, names them on stdout and waits to be killed."""

from __future__ import annotations

import signal
import sys

from sandbox_specs import linear_spec
from sandbox_world import hostile

from pnode.sandbox.supervisor import ZygoteProcess

if __name__ == "__main__":
    zygote = ZygoteProcess.start(program=hostile(), deadline_s=20)
    workers = [zygote.fork(linear_spec()) for _ in range(2)]
    sys.stdout.write(f"{zygote.pid} {workers[0].pid} {workers[1].pid}\n")
    sys.stdout.flush()
    signal.pause()
