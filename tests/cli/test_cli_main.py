"""The command line: what it says, and with which code it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pnode.cli import main
from pnode.config import keys
from pnode.config.keys import env_name

CLEAN = {name: value for name, value in os.environ.items() if name not in {env_name(key.name) for key in keys()}}


def pnode(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m pnode` as a user would."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "pnode", *arguments],
        cwd=cwd,
        env=CLEAN | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a configuration that cannot be used."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_help_tells_the_roles_and_the_keys_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in (
        "role=node",
        "role=orchestrator",
        "role=selftest",
        "role=devnet job=digits",
        "ORCHESTRATOR_ADDRESS",
        "PNODE_PORT",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) <= 50


@pytest.mark.parametrize("option", ["--keys", "--help=all"])
def test_all_keys_are_listed_with_their_variables(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    text = capsys.readouterr().out
    for key in keys():
        assert key.name in text
        assert key.env in text
    assert max(map(len, text.splitlines())) <= 120


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pnode 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--halp"], "--halp: unknown option"),
        (["--help=some"], "--help or --help=all is expected"),
        (["--config"], "--config: a YAML file is expected"),
        (["--config", "/not/there.yaml"], "--config /not/there.yaml: No such file or directory"),
        (["--parent", "me"], "--parent: a process id is expected"),
        (["--parent", "1"], "--parent: process 1 is not the parent of this one"),
        (["node.port=x"], "node.port: expected a whole number"),
        ([], "orchestrator.address: is not set"),
        (["orchestrator.address=nowhere"], "orchestrator.address: 'nowhere' is not an address"),
        (["orchestrator.address=10.0.0.1:5"], "orchestrator.address: 10.0.0.1:5: TLS needs the fingerprint too"),
        (["orchestrator.address=127.0.0.1:1", "node.host=10.0.0.1"], "TLS needs the fingerprint too"),
        (["orchestrator.address=127.0.0.1:1", "tls.mode=on"], "TLS needs the fingerprint too"),
        ([f"orchestrator.address=127.0.0.1:1#sha256:{'0' * 64}", "node.host=0.0.0.0"], "node.advertise: is not set"),
        ([f"orchestrator.address=127.0.0.1:1#sha256:{'0' * 64}", "node.host=::"], "node.advertise: is not set"),
        (["orchestrator.address=127.0.0.1:1#md5:00"], "orchestrator.address: 'md5:00' is not a fingerprint"),
        (["orchestrator.address=example.org:1"], "orchestrator.address: 'example.org' is not an IPv4 or IPv6 address"),
        (["role=orchestrator", "rpc.token_s=50s"], "rpc.token_s: 50 s is too short"),
        (
            ["role=orchestrator", "orchestrator.host=1::2::3"],
            "orchestrator.host: '1::2::3' is not an IPv4",
        ),
        (["role=orchestrator", "store.url=ftp://x"], "names no store"),
        (["role=devnet", "devnet.kills=3"], "devnet.kills: 3 of 3 nodes would leave none"),
        (["role=devnet", "devnet.kill=240"], "devnet.kill: there is no step 240"),
        (["role=devnet", "devnet.placement=one-three", "job.stages=2"], "devnet.placement: one-three needs"),
        (["role=devnet", "devnet.folder=/dev/null/x"], "devnet.folder: /dev/null/x"),
        (["role=devnet", "job.stages=64"], "job: stages: 29 operators cannot be cut into 64 stages"),
        (["role=devnet", "job.memory=1MiB"], "limits.memory_bytes: 1048576 cannot hold this VNode"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_used_is_one_line_and_exit_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(pnode(*arguments, cwd=tmp_path))
    assert message in line


def test_a_node_without_an_orchestrator_names_the_devnet(tmp_path: Path) -> None:
    line = refused(pnode(cwd=tmp_path))
    assert "role=devnet" in line
    assert "ORCHESTRATOR_ADDRESS" in line


def test_a_taken_port_is_one_line_and_exit_2(tmp_path: Path) -> None:
    with taken_port() as port:
        line = refused(
            pnode("role=orchestrator", f"orchestrator.port={port}", f"store.url={tmp_path.as_uri()}", cwd=tmp_path)
        )
    assert f"port {port} is in use" in line


def test_a_store_that_does_not_answer_is_one_line_and_exit_2(tmp_path: Path) -> None:
    with taken_port() as port:
        closed = port
    line = refused(
        pnode(
            "role=orchestrator",
            f"store.s3.endpoint=http://127.0.0.1:{closed}",
            "orchestrator.port=0",
            cwd=tmp_path,
            S3_BUCKET="bucket",
            AWS_ACCESS_KEY_ID="nobody",
            AWS_SECRET_ACCESS_KEY="nothing",
            AWS_REGION="us-east-1",
        )
    )
    assert line.startswith("pnode: store: ")


def test_an_orchestrator_says_where_it_serves_and_ends_with_0_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "pnode", "role=orchestrator", "orchestrator.port=0"]
    with subprocess.Popen(
        [*command, f"store.url={(tmp_path / 'store').as_uri()}", "log.format=json"],
        cwd=tmp_path,
        env=CLEAN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        serving = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        logged = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert serving["event"] == "serving"
    host, _, port = serving["address"].partition(":")
    assert (host, int(port) > 0) == ("127.0.0.1", True)
    assert all({"time", "level", "logger", "message"} <= set(entry) for entry in logged)


@pytest.mark.parametrize("module", ["pnode.cli", "pnode.roles", "pnode.devnet.devnet", "pnode.client.driver"])
def test_no_front_imports_torch(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'samebits' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=False, timeout=60).returncode == 0
