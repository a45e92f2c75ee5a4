"""Whose a UUID is: bound to the first key that joins with it, over restarts, crashes and full disks."""

from __future__ import annotations

import logging
import resource
import signal
import stat
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pnode.errors import Busy, ConfigError, PermissionDenied, Unavailable
from pnode.security import known_keys
from pnode.security.identity import Identity
from pnode.security.known_keys import KnownKeys

MINE = "5f0c0f6e-34e0-4d8e-9f5c-5f6e34e04d8e"
OTHER = "0f3a4f0e-8a3c-4d6b-8a44-2f6f6f1f9a10"
LINE_BYTES = 102


def test_a_uuid_that_follows_from_a_key_is_nobody_elses(tmp_path: Path) -> None:
    keys, owner, thief = KnownKeys(tmp_path / "known"), Identity.fresh(), Identity.fresh()
    for judge in (keys.check, keys.bind):
        with pytest.raises(PermissionDenied, match="made from a key, and from another one"):
            judge(owner.uuid, thief.public)
        judge(owner.uuid, owner.public)
    assert (tmp_path / "known").read_bytes() == b"", "nothing needs to be kept of it"


def test_a_configured_uuid_is_bound_to_its_first_key_over_restarts(tmp_path: Path) -> None:
    owner, thief = Identity.fresh(), Identity.fresh()
    KnownKeys(tmp_path / "known").bind(MINE, owner.public)
    keys = KnownKeys(tmp_path / "known")
    keys.bind(MINE, owner.public)
    for judge in (keys.check, keys.bind):
        with pytest.raises(PermissionDenied, match="belongs to another key"):
            judge(MINE, thief.public)
    assert stat.S_IMODE((tmp_path / "known").stat().st_mode) == 0o600
    assert (tmp_path / "known").read_text() == f"{MINE} {owner.public.hex()}\n"


def test_to_be_judged_binds_nothing(tmp_path: Path) -> None:
    keys = KnownKeys(tmp_path / "known")
    keys.check(MINE, Identity.fresh().public)
    keys.bind(MINE, Identity.fresh().public)


def test_of_joiners_at_once_one_gets_the_uuid(tmp_path: Path) -> None:
    keys, joiners = KnownKeys(tmp_path / "known"), [Identity.fresh() for _ in range(16)]

    def join(joiner: Identity) -> bool:
        try:
            keys.bind(MINE, joiner.public)
        except PermissionDenied:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(join, joiners))
    assert won.count(True) == 1
    KnownKeys(tmp_path / "known").bind(MINE, joiners[won.index(True)].public)


def test_no_more_than_so_many_are_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_keys, "_MAX_KNOWN", 3)
    keys, joiner = KnownKeys(tmp_path / "known"), Identity.fresh()
    names = [str(uuid.uuid4()) for _ in range(4)]
    for name in names[:3]:
        keys.bind(name, joiner.public)
    with pytest.raises(Busy, match="3 UUIDs are bound"):
        keys.bind(names[3], joiner.public)
    keys.bind(names[0], joiner.public)


# What became of the file


@pytest.mark.parametrize("left", [1, 36, 37, 60, LINE_BYTES - 1])
def test_a_line_that_a_crash_left_unfinished_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    """Nobody was told that this join succeeded, so its UUID is free; all others stay bound."""
    path, owner, another = tmp_path / "known", Identity.fresh(), Identity.fresh()
    keys = KnownKeys(path)
    keys.bind(MINE, owner.public)
    keys.bind(OTHER, owner.public)
    path.write_bytes(path.read_bytes()[: LINE_BYTES + left])
    with caplog.at_level(logging.WARNING):
        after = KnownKeys(path)
    assert "ends within a line, which is removed" in caplog.text
    assert path.stat().st_size == LINE_BYTES
    after.bind(OTHER, another.public)
    with pytest.raises(PermissionDenied):
        after.bind(MINE, another.public)
    again = KnownKeys(path)
    again.bind(MINE, owner.public)
    again.bind(OTHER, another.public)


@pytest.mark.parametrize(
    "spoiled",
    [b"half a li\n", b"\n", b"\0" * LINE_BYTES + b"\n", b"\xff\n", MINE.encode() + b" " + b"g" * 64 + b"\n"],
)
def test_a_spoiled_line_is_refused_by_number(tmp_path: Path, spoiled: bytes) -> None:
    """Elsewhere than at the end it was no crash, and a binding may be lost."""
    KnownKeys(tmp_path / "known").bind(MINE, Identity.fresh().public)
    with (tmp_path / "known").open("ab") as file:
        file.write(spoiled)
    with pytest.raises(ConfigError, match=r"line 2 of .*known is no UUID with its key"):
        KnownKeys(tmp_path / "known")


def test_a_file_that_we_never_wrote_is_refused_whole(tmp_path: Path) -> None:
    """Were it read in part, its end would look like an unfinished line, and be cut."""
    path = tmp_path / "known"
    KnownKeys(path)
    path.write_bytes(b"x" * (65_536 * LINE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 65536 UUIDs"):
        KnownKeys(path)
    assert path.stat().st_size == 65_536 * LINE_BYTES + 1


FULL = """
import sys
from pathlib import Path
from pnode.errors import Unavailable
from pnode.security.known_keys import KnownKeys
keys = KnownKeys(Path(sys.argv[1]))
try:
    keys.bind(sys.argv[2], bytes(32))
except Unavailable as error:
    print(error.message)
"""


def limited() -> None:
    """Half a line more than is there: the write ends in the middle, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LINE_BYTES + LINE_BYTES // 2,) * 2)


def test_a_full_disk_refuses_the_join_and_spoils_nothing(tmp_path: Path) -> None:
    path, owner = tmp_path / "known", Identity.fresh()
    KnownKeys(path).bind(MINE, owner.public)
    child: Any = subprocess.run(
        [sys.executable, "-c", FULL, str(path), OTHER],
        preexec_fn=limited, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "could not keep whose a UUID is" in child.stdout
    assert path.stat().st_size == LINE_BYTES
    keys = KnownKeys(path)
    keys.bind(MINE, owner.public)
    keys.bind(OTHER, owner.public)


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    keys = KnownKeys(tmp_path / "below" / "known")
    (tmp_path / "below" / "known").unlink()
    (tmp_path / "below").rmdir()
    with pytest.raises(Unavailable, match="No such file"):
        keys.bind(MINE, Identity.fresh().public)
    assert MINE not in keys._keys
