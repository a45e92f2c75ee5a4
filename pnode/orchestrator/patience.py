"""When to wait, whom to avoid and when to give up on a run that gets nowhere. Pure."""

from __future__ import annotations


class Patience:
    """Of one run. A VNode that is lost again and again without any progress of the run ends it."""

    def __init__(self, *, max_losses: int, retry_s: float, retry_cap_s: float, avoid_s: float) -> None:
        self._max_losses = max_losses
        self._retry_s = retry_s
        self._retry_cap_s = retry_cap_s
        self._avoid_s = avoid_s
        self._losses: dict[str, int] = {}
        self._best_version = 0
        self._failures = 0
        self._avoid: dict[tuple[str, str], float] = {}

    def lost(self, vnode: str) -> int:
        """Count one loss; returns how many there were, when they are more than allowed, else 0."""
        self._losses[vnode] = self._losses.get(vnode, 0) + 1
        return self._losses[vnode] if self._losses[vnode] > self._max_losses else 0

    def progressed(self, version: int) -> None:
        """The run was seen at a version: only one that it never reached before counts as progress."""
        if version > self._best_version:
            self._best_version = version
            self._losses.clear()

    def pause_s(self) -> float:
        """Before the next try: nothing after the first failure, then doubling up to the cap."""
        self._failures += 1
        if self._failures == 1:
            return 0.0
        # The exponent is bounded because a run may wait for days.
        return min(self._retry_s * 2.0 ** min(self._failures - 2, 32), self._retry_cap_s)

    def served(self) -> None:
        """The run is whole again: the next failure is a first one."""
        self._failures = 0
        self._avoid.clear()

    def avoid(self, vnode: str, node_uuid: str, now: float) -> None:
        """Do not offer this VNode to this node for a while."""
        self._avoid[(vnode, node_uuid)] = now + self._avoid_s

    def avoided(self, now: float) -> frozenset[tuple[str, str]]:
        """The (VNode, node) pairs to avoid now."""
        self._avoid = {pair: until for pair, until in self._avoid.items() if until > now}
        return frozenset(self._avoid)
