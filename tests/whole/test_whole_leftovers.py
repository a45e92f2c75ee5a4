"""The guard against leftovers finds each kind of them, in one process and under xdist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.leftovers import MARK, nested_name

ROOT = Path(__file__).parents[2]

GUARD = """
import ctypes, os, subprocess, threading
import pytest
from tests.leftovers import MARK, guarded, nested_name

@pytest.fixture(scope="session", autouse=True)
def nothing_left():
    yield from guarded(0.5)
"""

LEAKS = """
def test_processes():
    subprocess.Popen(["sleep", "61"])
    subprocess.run(["sh", "-c", "setsid sleep 62 > /dev/null 2>&1 &"])
    os.fork() or os._exit(0)

def test_a_thread():
    threading.Thread(target=threading.Event().wait, args=(5,), name="straggler").start()

def test_shared_memory():
    open("/dev/shm/" + nested_name(os.environ[MARK]), "w").close()
    os.memfd_create("left-open")
    descriptor = os.memfd_create("left-mapped")
    os.truncate(descriptor, 4096)
    ctypes.CDLL(None).mmap(None, ctypes.c_size_t(4096), 1, 1, descriptor, ctypes.c_long(0))
    os.close(descriptor)
"""

SEEN = [
    ": sleep 61",
    ": sleep 62",
    ", a zombie",
    "thread straggler",
    "/dev/shm/nested.",
    "/memfd:left-open",
    "mapped /memfd:left-mapped",
]


def run(folder: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_leaky.py").write_text(GUARD + tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_leaky.py"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    try:
        return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)
    finally:
        for left in Path("/dev/shm").glob(nested_name(os.environ[MARK]) + "*"):
            left.unlink()


def test_each_kind_is_found(tmp_path: Path) -> None:
    done = run(tmp_path, LEAKS)
    assert done.returncode == 1
    assert "the tests left behind: " in done.stdout
    assert [seen for seen in SEEN if seen not in done.stdout] == []


def test_a_worker_of_xdist_is_found_out_too(tmp_path: Path) -> None:
    done = run(tmp_path, LEAKS, "-p", "xdist", "-n", "1")
    assert done.returncode == 1
    assert [seen for seen in SEEN if seen not in done.stdout] == []


def test_tests_that_clean_up_pass(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_clean():\n    subprocess.run(['true'])\n")
    assert done.returncode == 0, done.stdout
