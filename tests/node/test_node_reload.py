"""SIGHUP: what may change while VNodes are at work changes, the rest is named, and what is wrong changes nothing."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pnode.errors import ConfigError
from pnode.node.pressure import Thresholds
from pnode.node.reload import Reload
from pnode.node.settings import NodeSettings

BEFORE = NodeSettings(orchestrator_address="127.0.0.1:1", data_dir=Path("/nowhere"))


class Obeying:
    def __init__(self) -> None:
        self.settings: list[NodeSettings] = []

    def obey(self, settings: NodeSettings) -> None:
        self.settings.append(settings)

    def drain(self, reason: str) -> None:
        raise AssertionError(reason)


def changed(**values: object) -> NodeSettings:
    return NodeSettings(**{**vars(BEFORE), **values})


def test_limits_change_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    node, pressure = Obeying(), Thresholds(free=20)
    Reload(node, BEFORE, lambda: changed(vnode_memory_bytes=5, max_vnodes=2, pressure=pressure))()
    (found,) = node.settings
    assert (found.vnode_memory_bytes, found.max_vnodes, found.pressure) == (5, 2, pressure)
    assert "limits.memory is 5" in caplog.text
    assert "restart" not in caplog.text


def test_what_needs_a_restart_is_named_and_waits(caplog: pytest.LogCaptureFixture) -> None:
    node = Obeying()
    reload = Reload(node, BEFORE, lambda: changed(port=1, num_threads=2, max_vnodes=2))
    reload()
    reload()
    assert [(each.port, each.num_threads, each.max_vnodes) for each in node.settings] == [(50051, 1, 2)] * 2
    assert caplog.text.count("what else has changed needs a restart: port, num_threads") == 2


def test_what_is_wrong_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def wrong() -> NodeSettings:
        raise ConfigError("limits.memory: expected a size")

    node = Obeying()
    Reload(node, BEFORE, wrong)()
    assert node.settings == []
    assert "limits.memory: expected a size" in caplog.text


# A process that says what it is told, and ends once it is told to leave.
_TOLD = """
import os, sys, threading
from pathlib import Path
from pnode.node import reload
from pnode.node.settings import NodeSettings
left = threading.Event()
class Node:
    def obey(self, settings): print("obeys", file=said, flush=True)
    def drain(self, reason): print(reason, file=said, flush=True); left.set()
settings = NodeSettings(orchestrator_address="127.0.0.1:1", data_dir=Path("/nowhere"))
said = open(sys.argv[1], "w")
os.open(os.ttyname(0), os.O_RDWR)  # the first terminal that a session opens becomes its own
with reload.reloading_on_hangup(Node(), settings, lambda: settings):
    print("ready", flush=True)
    left.wait()
"""


@pytest.mark.timeout(60)
def test_a_closed_terminal_is_no_wish_for_other_settings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "said")
    terminal, theirs = os.openpty()
    program = [sys.executable, "-c", _TOLD, str(tmp_path / "said")]
    with subprocess.Popen(program, stdin=theirs, stdout=theirs, start_new_session=True) as process:
        os.close(theirs)
        with (tmp_path / "said").open() as said:
            heard = b""
            while not heard.endswith(b"\n"):  # what is still being written would fail once the terminal is closed
                heard += os.read(terminal, 100)
            assert heard == b"ready\r\n"
            process.send_signal(signal.SIGHUP)
            assert said.readline() == "obeys\n"
            os.close(terminal)
            assert said.readline() == "its terminal was closed\n"
    assert process.returncode == 0
