"""Whether a node takes a VNode in, judged from its spec before anything is loaded. Every refusal names the figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pnode.errors import Busy, SpecError
from pnode.node.budget import Budget
from pnode.v1 import spec_pb2
from pnode.vnode import estimate, sizes

# A refused allocation may be asked again after this long: by then another VNode may have left.
_RETRY_AFTER_S = 5.0


@dataclass(frozen=True)
class Guests:
    """Who is here already.

    reserved_bytes: memory promised to all of them; used_bytes: what their workers have taken of it by now. kept_bytes:
    of their states in the store.
    """

    num: int
    reserved_bytes: int
    used_bytes: int
    kept_bytes: int = 0


def admit(
    spec: spec_pb2.VNodeSpec, guests: Guests, budget: Budget, *, max_vnodes: int, disk_bytes: int | None = None
) -> None:
    """Raises SpecError for what never fits here, Busy for what does not fit now. disk_bytes: None for no limit."""
    need = int(spec.limits.memory_bytes)
    if need > budget.most_bytes():
        why = f"{need} is over the {budget.most_bytes()} that this node grants to all VNodes"
        raise SpecError("limits.memory_bytes", why)
    peak = estimate.peak_bytes(spec)
    if peak > need:
        # It would be loaded, trained for a while, and then be ended for a breach.
        rows = sizes.training_rows(spec)
        why = f"{need} is under the {peak} that a full window of {rows} rows is estimated to take"
        raise SpecError("limits.memory_bytes", why)
    free = budget.granted_bytes(guests.used_bytes) - guests.reserved_bytes
    if need > free:
        raise Busy(f"needs {need} bytes of memory, {max(0, free)} are free", retry_after_s=_RETRY_AFTER_S)
    if guests.num >= max_vnodes:
        raise Busy(f"already hosts {guests.num} VNodes, the most allowed", retry_after_s=_RETRY_AFTER_S)
    if disk_bytes is not None:
        _admit_states(spec, guests, disk_bytes)


def _admit_states(spec: spec_pb2.VNodeSpec, guests: Guests, disk_bytes: int) -> None:
    need = kept_bytes(spec)
    if need > disk_bytes:
        why = f"with one more they take {need} bytes in the store, {disk_bytes} are what this node may keep there"
        raise SpecError("checkpoint.keep", f"{spec.checkpoint.keep} states: {why}")
    free = disk_bytes - guests.kept_bytes
    if need > free:
        raise Busy(f"needs {need} bytes in the store, {max(0, free)} are free", retry_after_s=_RETRY_AFTER_S)


def kept_bytes(spec: spec_pb2.VNodeSpec) -> int:
    """Of a VNode's states in the store at most: retention removes the oldest once a newer one was committed."""
    return (int(spec.checkpoint.keep) + 1) * sizes.state_bytes(spec)


def admit_window(spec: spec_pb2.VNodeSpec, others: Iterable[spec_pb2.VNodeSpec], in_flight_bytes: int) -> None:
    """Reserve the front's memory for a full window of microbatches, so that none that is admitted ever lacks it.

    Raises SpecError for a window that never fits `in_flight_bytes`, Busy for one that does not fit now.
    """
    need = sizes.window_bytes(spec)
    if need > in_flight_bytes:
        why = f"{spec.window} microbatches of {spec.limits.max_rows} rows take {need} bytes, over the {in_flight_bytes}"
        raise SpecError("window", f"{why} that this node grants to messages (limits.in_flight)")
    free = in_flight_bytes - sum(map(sizes.window_bytes, others))
    if need > free:
        raise Busy(f"its window needs {need} bytes for messages, {max(0, free)} are free", retry_after_s=_RETRY_AFTER_S)
