"""Starting a zygote by exec, with only what it needs: one socket, a reduced environment, the front's stderr."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from pnode.sandbox import frames

# `-P`: the working directory is not searched for modules.
ZYGOTE = ("-P", "-m", "pnode.sandbox.zygote")

# Fixed for every zygote. One OpenMP thread: a parallel region before a fork makes children hang. One malloc arena:
# each further one reserves address space, which the memory limit counts.
_FIXED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
# Passed on where the front has them; nothing else is, so no credential of the store reaches a worker.
_PASSED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "TMPDIR",
    # Of the C library: from which size on memory comes from the system piece by piece, and goes back there.
    "MALLOC_MMAP_THRESHOLD_",
    "XDG_CACHE_HOME",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
)
_PASSED_PREFIXES = ("SAMEBITS_", "NUMBA_")

# A request is a few hundred bytes; a zygote that does not take it for so long is stuck.
_SEND_S = 5.0
# The kernel takes no longer to end what was killed, but for a disk that hangs.
_KILLED_S = 60.0


def environment(front: Mapping[str, str]) -> dict[str, str]:
    """The zygote's environment, from the front's."""
    passed = {key: front[key] for key in front if key in _PASSED or key.startswith(_PASSED_PREFIXES)}
    return passed | _FIXED


class Launched:
    """A zygote process and our end of its socket."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self.process = process
        self.channel = channel

    def end(self, grace_s: float) -> int:
        """Close its socket, on which it leaves by itself; kill it after `grace_s`. Returns its exit code."""
        self.channel.close()
        try:
            return self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(_KILLED_S)


def launch(program: Sequence[str] = ZYGOTE) -> Launched:
    """Start a zygote. Call it from a thread that lasts: the zygote dies with the *thread* that started it."""
    ours, theirs = frames.pair()
    with theirs:
        arguments = [sys.executable, *program, str(theirs.fileno()), str(os.getpid())]
        process = subprocess.Popen(
            arguments,
            pass_fds=(theirs.fileno(),),
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=2,  # stdout is the front's own: a job's last line on it is read by machines
            start_new_session=True,
        )
    ours.settimeout(_SEND_S)
    return Launched(process, ours)
