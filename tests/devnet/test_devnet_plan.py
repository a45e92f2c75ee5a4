"""What a devnet run decides before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pnode.config import Settings, load
from pnode.devnet.plan import (
    make_plan,
    node_changes,
    orchestrator_changes,
    pins,
    plan_faults,
    plan_kills,
    with_own_store,
    with_seed,
    write_config,
)
from pnode.errors import ConfigError


def settings(tmp_path: Path, *overrides: str) -> Settings:
    return load(["role=devnet", f"devnet.folder={tmp_path}", *overrides])


@given(st.integers(1, 1000), st.integers(1, 5), st.integers(0, 2**64))
def test_random_kills_come_in_the_middle_of_the_run(steps: int, num: int, seed: int) -> None:
    kills = plan_kills("random", num, steps, seed)
    assert len(kills) == num
    assert kills == plan_kills("random", num, steps, seed), "the seed decides"
    assert [kill.step for kill in kills] == sorted(kill.step for kill in kills)
    assert all(0 <= kill.step < steps for kill in kills)
    assert all(0 <= kill.fraction < 1 and 0 <= kill.draw < 1 for kill in kills)


def test_kills_where_they_were_asked_for() -> None:
    assert plan_kills("none", 1, 100, 0) == []
    assert [kill.step for kill in plan_kills("17", 2, 100, 0)] == [17, 17]


def test_faults_kill_at_their_rate_and_those_nodes_return(tmp_path: Path) -> None:
    kills = plan_faults(0.1, 1000, seed=3)
    assert kills == plan_faults(0.1, 1000, seed=3)
    assert 60 < len(kills) < 140
    assert all(kill.returns for kill in kills)
    assert plan_faults(0.0, 1000, seed=3) == []
    plan = make_plan(settings(tmp_path, "devnet.faults=kill:0.5", "job.steps=50"))
    assert [kill.step for kill in plan.kills] == sorted(kill.step for kill in plan.kills)
    assert sum(not kill.returns for kill in plan.kills) == 1, "the one of devnet.kill"


def test_children_have_the_seed_of_the_run(tmp_path: Path) -> None:
    plan = make_plan(settings(tmp_path))
    assert orchestrator_changes(settings(tmp_path), plan)["devnet.seed"] == plan.seed
    assert node_changes(settings(tmp_path), plan, "node-1", "127.0.0.1:1")["devnet.seed"] == plan.seed
    assert with_seed(settings(tmp_path), plan).devnet.seed == plan.seed


def test_every_run_has_a_folder_of_its_own_and_says_its_seed(tmp_path: Path) -> None:
    first, second = (make_plan(settings(tmp_path)) for _ in range(2))
    assert first.folder != second.folder
    assert first.folder.is_dir()
    assert first.seed != second.seed
    assert len(set(first.nodes.values())) == 3
    assert make_plan(settings(tmp_path, "devnet.seed=5")).seed == 5


def test_stages_one_and_three_share_a_node_where_asked(tmp_path: Path) -> None:
    nodes = {"node-1": "a", "node-2": "b", "node-3": "c"}
    assert pins(settings(tmp_path), nodes) == ""
    assert pins(settings(tmp_path, "devnet.placement=one-three"), nodes) == "stage1=a,stage2=c,stage3=a"


def test_children_are_told_everything_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the devnet must not give all nodes one UUID and one port."""
    mine = settings(tmp_path, "job.steps=7", "limits.message=1MiB")
    plan = make_plan(mine)
    mine = with_own_store(mine, plan)
    monkeypatch.setenv("PNODE_UUID", "7a1f3c2e-0d4b-4b64-9f6d-1f2e3d4c5b6a")
    monkeypatch.setenv("PNODE_PORT", "50051")
    monkeypatch.setenv("PNODE_ROLE", "devnet")
    orchestrator = load([], str(write_config(mine, orchestrator_changes(mine, plan), tmp_path / "o.yaml")))
    assert (orchestrator.role, orchestrator.orchestrator.port, orchestrator.orchestrator.min_nodes) == (
        "orchestrator",
        0,
        3,
    )
    changes = node_changes(mine, plan, "node-2", "127.0.0.1:1")
    node = load([], str(write_config(mine, changes, tmp_path / "n.yaml")))
    assert (node.role, node.node.uuid, node.node.port) == ("node", plan.nodes["node-2"], 0)
    assert node.orchestrator.address == "127.0.0.1:1"
    assert node.store.url == orchestrator.store.url == (plan.folder / "store").as_uri()
    assert node.limits.message == 1 << 20
    assert yaml.safe_load((tmp_path / "n.yaml").read_text())["job"]["steps"] == 7


def test_a_configured_store_stays(tmp_path: Path) -> None:
    for override in ("store.url=file:///elsewhere", "store.s3.bucket=bucket"):
        mine = settings(tmp_path, override)
        assert with_own_store(mine, make_plan(mine)) == mine


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["devnet.kills=3"], "would leave none"),
        (["devnet.kill=240"], "there is no step 240"),
        (["devnet.placement=one-three", "devnet.nodes=1", "devnet.kill=none"], "one-three needs"),
        (["devnet.folder=/dev/null/x"], "devnet.folder"),
    ],
)
def test_plans_that_cannot_be(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(settings(tmp_path, *overrides))
