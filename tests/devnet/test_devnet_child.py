"""Child processes: known by their first line, ended whatever happens."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pnode.devnet.child import Child, described, end_all
from pnode.errors import PNodeError

SERVING = 'print(\'{"event": "serving", "address": "127.0.0.1:7"}\', flush=True)'
FOREVER = f"import signal; {SERVING}; signal.pause()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SERVING}\nwhile True: signal.pause()"


def child(code: str, tmp_path: Path, **callbacks: Callable[[Any], None]) -> Child:
    return Child("child", ("-c", code), tmp_path / "child.log", **callbacks)


def test_a_child_that_serves_is_known_by_its_line_and_ends_on_sigterm(tmp_path: Path) -> None:
    ended: list[int] = []
    serving = child(FOREVER, tmp_path, on_end=ended.append)
    serving.wait_serving(30)
    assert serving.address == "127.0.0.1:7"
    end_all([serving], 30)
    assert serving.exit_code == -signal.SIGTERM
    assert ended == [-signal.SIGTERM]


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    stubborn = child(STUBBORN, tmp_path)
    stubborn.wait_serving(30)
    end_all([stubborn], 0.05)
    assert stubborn.exit_code == -signal.SIGKILL


def test_a_child_that_dies_at_its_start_shows_its_last_lines(tmp_path: Path) -> None:
    dying = child("import sys; print('out of luck', file=sys.stderr); sys.exit(3)", tmp_path)
    with pytest.raises(PNodeError, match="child ended with exit code 3; its last lines:\nout of luck"):
        dying.wait_serving(30)
    dying.join()


def test_a_child_that_never_serves_is_not_awaited_for_ever(tmp_path: Path) -> None:
    looked: list[str] = []
    silent = child("import signal; signal.pause()", tmp_path)
    with pytest.raises(PNodeError, match=r"did not serve in 0\.2 s"):
        silent.wait_serving(0.2, lambda at: looked.append(at.name))
    silent.kill()
    assert looked
    silent.signal(signal.SIGTERM)  # it has ended: nobody else is hit


def test_every_line_of_json_is_told_and_garbage_is_not(tmp_path: Path) -> None:
    heard: list[dict[str, object]] = []
    code = "print('{\"step\": 1}'); print('oops'); print('[1]'); print('{\"step\": 2}')"
    talking = child(code, tmp_path, on_line=heard.append)
    assert talking.wait_end(30)
    talking.join()
    assert heard == [{"step": 1}, {"step": 2}]


def test_children_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """A devnet that is killed by SIGKILL leaves nothing behind: the kernel sees to it."""
    code = (
        "import sys, time; from pathlib import Path; from pnode.devnet.child import Child\n"
        "config = ('-P', '-m', 'pnode', 'role=orchestrator', 'orchestrator.port=0', sys.argv[1])\n"
        "child = Child('o', config, Path(sys.argv[2]))\n"
        "child.wait_serving(60); print(child.pid, flush=True); time.sleep(100)"
    )
    url = f"store.url={(tmp_path / 'store').as_uri()}"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, url, str(tmp_path / "o.log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        pidfd = os.pidfd_open(pid)
        parent.kill()
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(30_000), "the child outlived its parent"
    finally:
        os.close(pidfd)


def test_exit_codes_in_words() -> None:
    assert described(3) == "exit code 3"
    assert described(-9) == "SIGKILL"
