"""The rlimits of a worker, from the limits in its spec."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pnode.sandbox import frames, layers
from pnode.v1 import spec_pb2

# Room above the memory limit that is opened only to say that the limit was hit.
_LAST_WORDS_BYTES = 16 << 20
# Address space of one more kernel thread: its stack. Its allocations come from the one arena that the zygote's
# environment allows (MALLOC_ARENA_MAX), so nothing else is reserved for it.
_THREAD_BYTES = 9 << 20
# What one processor thread may open: its socket, the standard streams and a few for the interpreter.
_NUM_FILES = 32
# CUDA opens a device file or two per context and per library.
_NUM_FILES_CUDA = 1024


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker may use.

    memory_bytes: beyond what the zygote's image takes; the two shared arenas count. cpu_s: per command.
    layers: of its box, of those in layers.py. makes_code: whether its libraries compile while they run.
    """

    memory_bytes: int
    cpu_s: float
    num_threads: int
    device: str
    layers: tuple[str, ...] = ()
    makes_code: bool = False

    @property
    def is_cuda(self) -> bool:
        """Whether a driver runs in it: some limits cannot hold then."""
        return self.device == "cuda"

    def to_wire(self) -> frames.Frame:
        """As it stands in a request to the zygote."""
        return {
            "memory_bytes": self.memory_bytes,
            "cpu_s": self.cpu_s,
            "num_threads": self.num_threads,
            "device": self.device,
            "layers": " ".join(self.layers),
            "makes_code": int(self.makes_code),
        }

    @classmethod
    def from_wire(cls, frame: frames.Frame) -> WorkerLimits:
        """From a request. Raises FrameError."""
        return cls(
            memory_bytes=frames.integer(frame, "memory_bytes"),
            cpu_s=frames.number(frame, "cpu_s"),
            num_threads=frames.integer(frame, "num_threads"),
            device=frames.text(frame, "device"),
            layers=tuple(frames.text(frame, "layers").split()),
            makes_code=frames.integer(frame, "makes_code") != 0,
        )


def of_spec(spec: spec_pb2.VNodeSpec, *, num_threads: int, device: str, offered: Iterable[str]) -> WorkerLimits:
    """The worker's limits from its spec. `offered`: the layers that there are on this machine."""
    return WorkerLimits(
        memory_bytes=int(spec.limits.memory_bytes),
        cpu_s=float(spec.limits.cpu_s),
        num_threads=num_threads,
        device=device,
        layers=layers.on_device(offered, device),
        makes_code=spec.profile == "torch",
    )


def image_bytes() -> int:
    """Address space of this process now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def apply(limits: WorkerLimits) -> None:
    """Put the limits on this process for good, before the shared arenas are mapped."""
    num_files = _NUM_FILES_CUDA if limits.is_cuda else _NUM_FILES
    _lower(resource.RLIMIT_NOFILE, num_files)
    _lower(resource.RLIMIT_CORE, 0)
    if limits.is_cuda:
        # A driver writes files of its own, starts threads and reserves address space by the hundred gigabytes.
        allow_cpu(limits.cpu_s)
        return
    # Nothing is written to files; shared memory that is mapped does not count here.
    _lower(resource.RLIMIT_FSIZE, 0)
    if layers.UID in limits.layers:
        # Counted per user, and it has one of its own.
        _lower(resource.RLIMIT_NPROC, limits.num_threads)
    elif limits.num_threads == 1:
        # Others count as well, so 0 means: nothing may be started from here.
        _lower(resource.RLIMIT_NPROC, 0)
    soft = image_bytes() + (limits.num_threads - 1) * _THREAD_BYTES + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft + _LAST_WORDS_BYTES))
    allow_cpu(limits.cpu_s)


def allow_cpu(cpu_s: float) -> None:
    """Grant `cpu_s` seconds of processor time from here on. SIGXCPU ends the process when they are used up.

    RLIMIT_CPU counts a whole life, so every command moves it; it has a granularity of one second. A worker that was
    taken over could move it too: what binds that one is the front, which reads the processor clock of its workers.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + cpu_s)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def raise_num_files() -> None:
    """As many descriptors as this process may have: one for each child. Its children get their own, low limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_last_words() -> None:
    """After the memory limit was hit: a little room to say so before the end."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _lower(which: int, value: int) -> None:
    """Set soft and hard to `value`, or leave a hard limit that is lower already."""
    _, hard = resource.getrlimit(which)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))
