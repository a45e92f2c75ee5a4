"""What a container's cgroups allow, of either version, and how much of that is in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from pnode.node import budget, cgroup
from pnode.node.cgroup import Bound, bounds

GIB = 1 << 30


def fill(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max\n", []), ("1073741824\n", [Bound(GIB, 0)]), ("garbage\n", []), ("", [])],
)
def test_the_limit_of_a_container(tmp_path: Path, text: str, expected: list[Bound]) -> None:
    fill(tmp_path, memory_max=text)
    assert bounds(tmp_path, tmp_path / "missing") == expected


def test_all_on_the_way_up_count(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/user/app\n")
    folder = tmp_path / "cgroup" / "user" / "app"
    fill(folder, memory_max="max\n")
    fill(folder.parent, memory_max="2048\n", memory_current="48\n")
    fill(folder.parents[1], memory_max="4096\n", memory_current="4000\n")
    assert bounds(tmp_path / "cgroup", membership) == [Bound(2048, 48), Bound(4096, 4000)]


def test_version_1(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("9:name=systemd:/\n4:memory:/app\n1:cpu:/\n")
    folder = tmp_path / "memory" / "app"
    fill(folder, memory_limit_in_bytes="5000\n", memory_usage_in_bytes="3000\n")
    fill(folder, memory_stat="inactive_file 1\ntotal_inactive_file 1000\n")
    assert bounds(tmp_path, membership) == [Bound(5000, 2000)]


def test_what_the_kernel_gives_back_for_the_asking_is_not_in_use(tmp_path: Path) -> None:
    fill(tmp_path, memory_max="1000\n", memory_current="900\n", memory_stat="anon 300\ninactive_file 500\nbroken\n")
    (found,) = bounds(tmp_path, tmp_path / "missing")
    assert (found.used_bytes, found.free_bytes) == (400, 600)
    assert Bound(1000, 1500).free_bytes == 0


def test_the_budget_takes_what_is_nearest_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of 1 GiB with a tenth left, on a machine that has all of its memory."""
    monkeypatch.setattr(cgroup, "bounds", lambda: [Bound(GIB, GIB - GIB // 10)])
    assert budget.machine_bytes() == GIB
    assert budget.free_bytes() == GIB // 10
    assert budget.free_share() == pytest.approx(0.1, abs=1e-6)
