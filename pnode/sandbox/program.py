"""What a zygote is loaded with before it forks: the seam between the processes and the mathematics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pnode.sandbox.worker import Commands

# Tells the front what the zygote is busy with.
Note = Callable[[str], None]


class Program(Protocol):
    """Loaded once in the zygote, used in its children."""

    def commands(self, *, num_threads: int, device: str) -> Commands:
        """In a worker: the commands of a VNode that is yet to be created by the command `create`."""
        ...

    def probe(self) -> dict[str, object]:
        """In a child made for it: what torch finds on this machine. May wake the driver of a GPU."""
        ...


# Imports and compiles everything that children need, in one thread.
Load = Callable[[Note], Program]
