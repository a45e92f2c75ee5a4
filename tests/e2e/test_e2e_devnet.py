"""The main job as a user runs it, only shorter: real processes, a real kill, the same digest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from pnode.config import keys
from tests.seaweed import S3Endpoint

# Everything under test is in other processes, which a busy machine may hold up for long.
pytestmark = pytest.mark.timeout(420)

CLEAN = {name: value for name, value in os.environ.items() if name not in {key.env for key in keys()}}


def devnet(
    tmp_path: Path, *overrides: str, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[str]:
    """Start a devnet in a folder of the test's."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pnode", "role=devnet", f"devnet.folder={tmp_path}", *overrides],
        cwd=tmp_path,
        env={**CLEAN, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def complete(
    tmp_path: Path, *overrides: str, environment: Mapping[str, str] = MappingProxyType({})
) -> tuple[dict[str, Any], str]:
    """Run a devnet to its end; returns its last line, and what it told on stderr."""
    with devnet(tmp_path, *overrides, environment=environment) as process:
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert_nobody_is_left(tmp_path)
    return json.loads(out.splitlines()[-1]), err


def assert_nobody_is_left(tmp_path: Path) -> None:
    """No process still carries the test's folder on its command line."""
    left = [process.info for process in psutil.process_iter(["pid", "cmdline"]) if str(tmp_path) in str(process.info)]
    assert left == []


SHORT = ("job.steps=12", "job.checkpoint=4", "job.batch=16", "job.warmup=2")


def test_a_node_is_killed_and_the_digest_is_the_same(tmp_path: Path) -> None:
    line, err = complete(tmp_path, *SHORT)
    assert line["bitwise_equal"] is True
    assert line["digest"] == line["reference_digest"]
    assert (line["kills"], line["steps"]) == (1, 12)
    assert line["generation"] >= 2
    assert "SIGKILL to node-" in err
    folder = Path(line["folder"])
    assert folder.parent == tmp_path
    assert str(folder) in err
    report = json.loads((folder / "report.json").read_text())
    assert report["digest"] == line["digest"]
    assert report["differing_replays"] == 0
    assert len(report["losses"]) == 12
    assert len(report["steps_taken"]) >= 12
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_stages_one_and_three_on_one_node_with_other_microbatches(tmp_path: Path) -> None:
    """Nothing of it may matter: the digest is that of the uncut model on whole batches."""
    line, err = complete(
        tmp_path, *SHORT, "devnet.kill=none", "devnet.placement=one-three", "devnet.nodes=2", "job.microbatches=2"
    )
    assert line["bitwise_equal"] is True
    assert (line["kills"], line["generation"]) == (0, 1)
    assert "stage1 on node-1, stage2 on node-2, stage3 on node-1" in err


def test_two_of_three_nodes_are_killed_and_s3_brings_the_third_back(tmp_path: Path, s3_endpoint: S3Endpoint) -> None:
    """All that the last one has of the others lies in the bucket."""
    environment = s3_endpoint.environ() | {
        "S3_BUCKET": s3_endpoint.bucket,
        "PNODE_STORE_S3_ENDPOINT": s3_endpoint.url,
        "PNODE_STORE_S3_REGION": "us-east-1",
    }
    line, _ = complete(tmp_path, *SHORT, "devnet.kills=2", "job.microbatches=1", environment=environment)
    assert line["bitwise_equal"] is True
    assert line["kills"] == 2
    assert not (Path(line["folder"]) / "store").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_with_130(tmp_path: Path, number: signal.Signals) -> None:
    with devnet(tmp_path, "job.steps=100000", "devnet.kill=none") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "training on" in line:
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert_nobody_is_left(tmp_path)


def test_a_child_that_cannot_start_is_shown(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("not a folder")
    with devnet(tmp_path, f"store.url={taken.as_uri()}") as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "orchestrator ended with exit code 2; its last lines:" in err
    assert "Traceback" not in err
    assert_nobody_is_left(tmp_path)


SECRET = "a secret of this network"


def test_a_node_is_killed_and_the_digest_is_the_same_over_tls(tmp_path: Path) -> None:
    short = ("job.steps=8", "job.checkpoint=4", "job.batch=16", "job.warmup=2")
    line, _ = complete(
        tmp_path,
        *short,
        "tls.mode=on",
        environment={"PNODE_ORCHESTRATOR_ENROLMENT": SECRET, "PNODE_LOG_LEVEL": "debug"},
    )
    assert line["bitwise_equal"] is True
    assert (line["kills"], line["steps"]) == (1, 8)
    folder = Path(line["folder"])
    told = [folder / "report.json", *(folder / "logs").iterdir()]
    assert [path.name for path in told if SECRET in path.read_text()] == []
    assert "TLS" in (folder / "logs" / "orchestrator.log").read_text()
    private = [*(folder / "config").iterdir(), *folder.glob("*/identity.pem"), *folder.glob("*/authority/*.pem")]
    assert len(private) >= 9
    assert {path.stat().st_mode & 0o077 for path in private} == {0}
