"""The memory of all VNodes of a node together: the least of what is configured, of the cgroup, of what is free.

Read again at every admission and every heartbeat, for owners start programs of their own: the budget then shrinks,
nothing new is let in, and what is here already goes on until memory runs short (pressure.py).
"""

from __future__ import annotations

from collections.abc import Callable

import psutil

from pnode.node import cgroup

# What VNodes may have together when the operator names no figure: half of the machine stays with its owner.
_DEFAULT_SHARE = 0.5
# Of what is free now, this much may be promised: the rest is for the system to breathe, and for the front itself.
_FREE_SHARE = 0.9


def machine_bytes() -> int:
    """The machine's memory, or the cgroup's limit where that is lower."""
    return min([int(psutil.virtual_memory().total), *(bound.limit_bytes for bound in cgroup.bounds())])


def free_bytes() -> int:
    """What could be taken now without taking it from anyone, on the machine and in the cgroups."""
    return min([int(psutil.virtual_memory().available), *(bound.free_bytes for bound in cgroup.bounds())])


def free_share() -> float:
    """The same as a share of what there is in all; where a cgroup is closer to its end than the machine, its own."""
    memory = psutil.virtual_memory()
    pairs = [(memory.available, memory.total), *((bound.free_bytes, bound.limit_bytes) for bound in cgroup.bounds())]
    return float(min(free / max(1, most) for free, most in pairs))


class Budget:
    """The memory granted to all VNodes together, as of now. `configured_bytes` may be set at any time."""

    def __init__(
        self,
        configured_bytes: int | None,
        *,
        machine: Callable[[], int] = machine_bytes,
        free: Callable[[], int] = free_bytes,
    ) -> None:
        self.configured_bytes = configured_bytes
        self._machine = machine
        self._free = free

    def most_bytes(self) -> int:
        """What may be promised in all on a machine that does nothing else."""
        total, configured = self._machine(), self.configured_bytes
        return int(total * _DEFAULT_SHARE) if configured is None else min(configured, total)

    def granted_bytes(self, used_bytes: int = 0) -> int:
        """What may be promised in all now.

        used_bytes: what VNodes have taken already, of what they were promised. It is theirs and not free any more;
        without it, it would be counted against them twice.
        """
        return min(self.most_bytes(), used_bytes + int(_FREE_SHARE * self._free()))
