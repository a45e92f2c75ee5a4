"""The budget is the least of what is configured, what the cgroups allow and what is free; admission keeps to it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from node_world import specs

from pnode.errors import Busy, SpecError
from pnode.node import budget
from pnode.node.admission import Guests, admit
from pnode.node.budget import Budget
from pnode.v1 import spec_pb2

GIB = 1 << 30


def of(configured: int | None, machine: int = 16 * GIB, free: int = 16 * GIB) -> Budget:
    return Budget(configured, machine=lambda: machine, free=lambda: free)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max\n", None), ("1073741824\n", 1 << 30), ("garbage\n", None), ("", None)],
)
def test_the_limit_of_a_container(tmp_path: Path, text: str, expected: int | None) -> None:
    (tmp_path / "memory.max").write_text(text)
    assert budget.cgroup_bytes(tmp_path, tmp_path / "missing") == expected


def test_the_lowest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/user/app\n")
    folder = tmp_path / "cgroup" / "user" / "app"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("max\n")
    (folder.parent / "memory.max").write_text("2048\n")
    (folder.parents[1] / "memory.max").write_text("4096\n")
    assert budget.cgroup_bytes(tmp_path / "cgroup", membership) == 2048


def test_version_1(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("9:name=systemd:/\n4:memory:/app\n1:cpu:/\n")
    folder = tmp_path / "memory" / "app"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("5000\n")
    assert budget.cgroup_bytes(tmp_path, membership) == 5000


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
