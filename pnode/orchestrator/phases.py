"""The cycle of a run.

OPENING     takes a new generation in the store and reads the manifests there
PLACING     waits until every VNode has a node
ALLOCATING  the VNodes without an allocation get one, under a new epoch
RESTORING   every VNode adopts the generation and the newest good manifest
SERVING     the driver trains
LEAVING     a node left in good order: a last common checkpoint is tried before the recovery
ENDED       finished, or failed
"""

from __future__ import annotations

from enum import Enum, auto


class Phase(Enum):
    """What the run waits for."""

    OPENING = auto()
    PLACING = auto()
    ALLOCATING = auto()
    RESTORING = auto()
    SERVING = auto()
    LEAVING = auto()
    ENDED = auto()
