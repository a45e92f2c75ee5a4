"""The budget is the least of what is configured, what the cgroups allow and what is free; admission keeps to it."""

from __future__ import annotations

import psutil
import pytest
from node_world import specs

from pnode.errors import Busy, SpecError
from pnode.node import budget
from pnode.node.admission import Guests, admit, admit_window
from pnode.node.budget import Budget
from pnode.v1 import spec_pb2
from pnode.vnode import sizes

GIB = 1 << 30


def of(configured: int | None, machine: int = 16 * GIB, free: int = 16 * GIB) -> Budget:
    return Budget(configured, machine=lambda: machine, free=lambda: free)


def test_this_machine() -> None:
    assert 0 < budget.machine_bytes() <= psutil.virtual_memory().total
    assert 0 < Budget(None).most_bytes() < budget.machine_bytes()
    assert Budget(1 << 60).most_bytes() == budget.machine_bytes()


def test_the_least_of_all() -> None:
    assert of(None).most_bytes() == 8 * GIB
    assert of(3 * GIB).granted_bytes() == 3 * GIB
    assert of(GIB << 10).granted_bytes() <= 16 * GIB
    assert of(None, free=GIB).granted_bytes() < GIB
    assert of(None, free=GIB).granted_bytes(2 * GIB) - 2 * GIB == of(None, free=GIB).granted_bytes()


def test_it_can_be_changed_while_it_is_in_use() -> None:
    budget = of(8 * GIB)
    budget.configured_bytes = 2 * GIB
    assert budget.most_bytes() == budget.granted_bytes() == 2 * GIB


def test_what_a_guest_was_promised_and_has_not_taken_yet_is_free_only_once() -> None:
    """4 of 10 GiB are promised and nobody has touched them: another 4 fit, and not 6."""
    admit(with_memory(4 * GIB), Guests(1, 4 * GIB, 0), of(None, 32 * GIB, free=10 * GIB), max_vnodes=2)
    with pytest.raises(Busy):
        admit(with_memory(6 * GIB), Guests(1, 4 * GIB, 0), of(None, 32 * GIB, free=10 * GIB), max_vnodes=2)


def test_what_a_guest_has_taken_is_not_counted_against_it_again() -> None:
    """4 of 10 GiB are promised and taken: 6 are free, and 5 of them can be given."""
    admit(with_memory(5 * GIB), Guests(1, 4 * GIB, 4 * GIB), of(None, 32 * GIB, free=6 * GIB), max_vnodes=2)


def with_memory(memory_bytes: int) -> spec_pb2.VNodeSpec:
    spec = specs()[0]
    spec.limits.memory_bytes = memory_bytes
    return spec


def test_what_fits_is_let_in_and_what_never_does_is_refused_for_good() -> None:
    nobody = Guests(0, 0, 0)
    admit(with_memory(GIB), nobody, of(2 * GIB), max_vnodes=1)
    with pytest.raises(SpecError, match=rf"{3 * GIB} is over the {2 * GIB}"):
        admit(with_memory(3 * GIB), nobody, of(2 * GIB), max_vnodes=1)
    with pytest.raises(SpecError, match=r"is under the .* is estimated to take"):
        admit(with_memory(5 << 20), nobody, of(2 * GIB), max_vnodes=1)


@pytest.mark.parametrize(
    ("guests", "granted", "message"),
    [
        (Guests(1, GIB, 0), of(GIB + 5), f"needs {GIB} bytes of memory, 5 are free"),
        (Guests(1, 2 * GIB, 0), of(GIB), "0 are free"),
        (Guests(0, 0, 0), of(8 * GIB, free=1000), f"needs {GIB} bytes of memory, 900 are free"),
        (Guests(3, 0, 0), of(8 * GIB), "already hosts 3 VNodes"),
    ],
)
def test_a_refusal_for_now_names_need_room_and_time(guests: Guests, granted: Budget, message: str) -> None:
    with pytest.raises(Busy, match=message) as refusal:
        admit(with_memory(GIB), guests, granted, max_vnodes=3)
    assert refusal.value.retry_after_s


def test_the_messages_of_a_window_are_reserved_with_it() -> None:
    spec = specs()[0]
    need = sizes.window_bytes(spec)
    assert need > spec.window * spec.limits.max_rows * 4 * (12 + 2 * 24 + 12)
    admit_window(spec, [spec], 2 * need)
    with pytest.raises(Busy, match=f"its window needs {need} bytes for messages, {need - 1} are free") as refusal:
        admit_window(spec, [spec], 2 * need - 1)
    assert refusal.value.retry_after_s
    with pytest.raises(SpecError, match=rf"window: {spec.window} microbatches of {spec.limits.max_rows} rows"):
        admit_window(spec, [], need - 1)
