"""The store of compiled kernels: owner-only, checksummed, optional."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samebits import _cache
from samebits._compile import Kernel
from samebits._intrinsics import load32, store32

uncached_directory = _cache.directory.__wrapped__


def doubled(x: int) -> None:
    store32(x, 0, load32(x, 0) + load32(x, 0))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / _cache.fingerprint()
    made.mkdir(mode=0o700)
    monkeypatch.setattr(_cache, "directory", lambda: made)
    return made


def test_the_directory_is_made_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMEBITS_CACHE_DIR", str(tmp_path / "a" / "b"))
    made = uncached_directory()
    assert made is not None
    assert made.parent == tmp_path / "a" / "b"
    assert made.name == _cache.fingerprint()
    assert made.stat().st_mode & 0o777 == 0o700
    assert made.parent.stat().st_mode & 0o777 == 0o700


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMEBITS_CACHE_DIR", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert _cache.cache_root() == Path("/own")
    monkeypatch.delenv("SAMEBITS_CACHE_DIR")
    assert _cache.cache_root() == Path("/shared/samebits")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert _cache.cache_root() == Path.home() / ".cache" / "samebits"


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMEBITS_CACHE_DIR", str(tmp_path / "cache"))
    made = uncached_directory()
    assert made is not None
    for open_place in (made, made.parent):
        open_place.chmod(0o770)
        with pytest.raises(RuntimeError, match=r"^samebits: .* can be written by others \(mode 770\)"):
            uncached_directory()
        open_place.chmod(0o700)
    assert uncached_directory() == made


def test_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("SAMEBITS_CACHE_DIR", str(tmp_path / "link"))
    with pytest.raises(RuntimeError, match="is not a plain directory"):
        uncached_directory()


def test_a_parent_that_everyone_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("SAMEBITS_CACHE_DIR", str(tmp_path / "open" / "cache"))
    with pytest.raises(RuntimeError, match="which everyone can write"):
        uncached_directory()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    fields = list(tmp_path.lstat())
    fields[4] = os.geteuid() + 12345
    with pytest.raises(RuntimeError, match="belongs to user"):
        _cache.refuse_if_open(tmp_path, os.stat_result(fields))


def test_where_no_directory_can_be_made_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAMEBITS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert uncached_directory() is None
    assert "compiles without a cache" in caplog.text
    monkeypatch.setattr(_cache, "directory", lambda: None)
    assert_doubles(Kernel(doubled, "void(intp)", binary64=False))


def assert_doubles(kernel: Kernel) -> None:
    x = np.array([3.0], np.float32)
    kernel(x.ctypes.data)
    assert x[0] == 6.0


def test_sources_changed_since_their_import_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cache, "directory", lambda: tmp_path)  # whose name is not today's fingerprint
    assert_doubles(Kernel(doubled, "void(intp)", binary64=False))
    assert list(tmp_path.iterdir()) == []


def loaded(kernel: Kernel) -> int:
    """How often the kernel came from the cache."""
    hits: Any = kernel.dispatcher.stats.cache_hits
    return int(sum(hits.values()))


def test_a_kernel_is_compiled_once_and_loaded_afterwards(place: Path) -> None:
    first, second = (Kernel(doubled, "void(intp)", binary64=False) for _ in range(2))
    assert_doubles(first)
    (record,) = place.iterdir()
    assert record.stat().st_mode & 0o077 == 0
    assert_doubles(second)
    assert (loaded(first), loaded(second)) == (0, 1)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_record_is_compiled_again(place: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    assert_doubles(Kernel(doubled, "void(intp)", binary64=False))
    (record,) = place.iterdir()
    good = record.read_bytes()
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    record.write_bytes({"flip": flipped, "cut": good[:100], "empty": b""}[damage])
    again = Kernel(doubled, "void(intp)", binary64=False)
    with caplog.at_level(logging.WARNING):
        assert_doubles(again)
    assert loaded(again) == 0
    assert "is damaged" in caplog.text
    third = Kernel(doubled, "void(intp)", binary64=False)
    assert_doubles(third)
    assert loaded(third) == 1


def test_a_full_disk_costs_the_cache_and_not_the_result(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", no_room)
    with caplog.at_level(logging.WARNING):
        assert_doubles(Kernel(doubled, "void(intp)", binary64=False))
    assert "No space left on device" in caplog.text


def test_a_fresh_process_loads_some_kernels_and_compiles_others(tmp_path: Path) -> None:
    program = "import samebits, torch; print(samebits.relu(torch.tensor([-1.0, 2.0])).tolist())"
    command = [sys.executable, "-c", program]
    environ = {**os.environ, "SAMEBITS_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(_cache.SOURCES.parent)}
    for _ in range(2):
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=110, check=True)
        assert done.stdout == "[0.0, 2.0]\n"
        (record,) = (tmp_path / "cache").glob("*/elementwise._relu.kernel")
        record.unlink()
