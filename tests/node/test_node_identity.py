"""The node's UUID survives restarts, is owner-only, and bad ones are refused in one line."""

from __future__ import annotations

import stat
import uuid
from pathlib import Path

import pytest

from pnode.errors import ConfigError
from pnode.node.identity import node_uuid


def test_made_once_and_kept(tmp_path: Path) -> None:
    first = node_uuid(tmp_path / "node", None)
    assert uuid.UUID(first)
    assert node_uuid(tmp_path / "node", None) == first
    assert stat.S_IMODE((tmp_path / "node" / "uuid").stat().st_mode) == 0o600


def test_the_configured_one_wins(tmp_path: Path) -> None:
    mine = "5f0c0f6e-34e0-4d8e-9f5c-5f6e34e04d8e"
    assert node_uuid(tmp_path, mine) == mine
    assert not (tmp_path / "uuid").exists()


@pytest.mark.parametrize("text", ["", "not-a-uuid", "1234", "é" * 36])
def test_a_bad_uuid_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"node\.uuid"):
        node_uuid(tmp_path, text)


def test_a_spoiled_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "uuid").write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(ConfigError, match="uuid"):
        node_uuid(tmp_path, None)


def test_an_unusable_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"node\.data_dir"):
        node_uuid(tmp_path / "file" / "below", None)
