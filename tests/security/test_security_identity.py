"""Identity keys: made once, owner-only, refused when anyone else could have read them; the UUID belongs to the key."""

from __future__ import annotations

import os
import stat
import threading
import uuid
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pnode.errors import BadRequest, ConfigError
from pnode.security.certificates import key_pem
from pnode.security.identity import Identity, is_signed, uuid_of
from pnode.security.private_files import load_or_make

MINE = "5f0c0f6e-34e0-4d8e-9f5c-5f6e34e04d8e"


def test_made_once_and_kept(tmp_path: Path) -> None:
    first = Identity.kept(tmp_path / "node")
    again = Identity.kept(tmp_path / "node")
    assert (first.uuid, first.public) == (again.uuid, again.public)
    assert stat.S_IMODE((tmp_path / "node" / "identity.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "node").stat().st_mode) == 0o700
    assert [path.name for path in (tmp_path / "node").iterdir()] == ["identity.pem"]


def test_the_uuid_follows_from_the_key_and_is_a_proper_one() -> None:
    key = Identity.fresh()
    assert key.uuid == uuid_of(key.public) == str(uuid.UUID(key.uuid))
    assert (uuid.UUID(key.uuid).version, uuid.UUID(key.uuid).variant) == (8, uuid.RFC_4122)
    assert Identity.fresh().uuid != key.uuid


def test_the_configured_uuid_wins(tmp_path: Path) -> None:
    assert Identity.kept(tmp_path, MINE).uuid == MINE


def test_a_signature_is_the_keys_and_the_contents() -> None:
    key = Identity.fresh()
    signature = key.sign(b"content")
    assert is_signed(key.public, b"content", signature)
    assert not is_signed(key.public, b"Content", signature)
    assert not is_signed(Identity.fresh().public, b"content", signature)
    assert not is_signed(key.public, b"content", b"")
    with pytest.raises(BadRequest, match="not an Ed25519 key"):
        is_signed(b"short", b"content", signature)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o610])
def test_a_key_that_others_could_use_is_refused(tmp_path: Path, mode: int) -> None:
    Identity.kept(tmp_path)
    (tmp_path / "identity.pem").chmod(mode)
    with pytest.raises(ConfigError, match=rf"identity\.pem has mode {mode:04o}, so others may have read the key"):
        Identity.kept(tmp_path)


def test_a_link_or_a_folder_instead_of_the_key_is_refused(tmp_path: Path) -> None:
    Identity.kept(tmp_path / "real")
    for name in ("linked", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked" / "identity.pem").symlink_to(tmp_path / "real" / "identity.pem")
    with pytest.raises(ConfigError, match="cannot be used"):
        Identity.kept(tmp_path / "linked")
    (tmp_path / "folder" / "identity.pem").mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="not a plain file"):
        Identity.kept(tmp_path / "folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    Identity.kept(tmp_path)
    os.chown(tmp_path / "identity.pem", 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to user 65534"):
        Identity.kept(tmp_path)


def test_spoiled_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    for content in (b"", b"\xff\xfe nonsense", key_pem(ec.generate_private_key(ec.SECP256R1()))):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=r"identity\.pem holds"):
            Identity.kept(tmp_path)


def test_an_unusable_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"node\.data_dir"):
        Identity.kept(tmp_path / "file" / "below")


def test_starters_at_once_get_the_same_bytes(tmp_path: Path) -> None:
    gate = threading.Barrier(8)
    found: list[bytes] = []

    def start(number: int) -> None:
        gate.wait(30.0)
        found.append(load_or_make(tmp_path / "key", lambda: bytes([number]) * 1000))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
