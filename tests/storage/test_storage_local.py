"""The local directory: whole blobs or none, whatever is killed, locked, full or in the way."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pnode.errors import BadRequest, BlobMissing, ConfigError, PreconditionFailed, StoreFull, StoreUnavailable
from pnode.storage.local import LocalStore


def test_what_a_killed_writer_left_is_removed_in_time(tmp_path: Path) -> None:
    LocalStore(tmp_path)
    old, fresh = tmp_path / ".staging" / "old", tmp_path / ".staging" / "fresh"
    for path in (old, fresh):
        path.write_bytes(b"half a blob")
    os.utime(old, (0, 0))
    store = LocalStore(tmp_path)
    assert not old.exists()
    assert fresh.exists()
    assert list(store.keys("")) == []


def test_no_put_leaves_anything_but_its_blob(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    etag = store.put_if_absent("a", b"x")
    with pytest.raises(PreconditionFailed):
        store.put_if_absent("a", b"y")
    with pytest.raises(PreconditionFailed):
        store.put_if_match("a", b"y", "other")
    store.put_if_match("a", b"z", etag)
    assert list((tmp_path / ".staging").iterdir()) == []


def test_blobs_are_the_owners_only(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put_if_absent("a/b", b"x")
    for path in (tmp_path / "store", tmp_path / "store" / "a", tmp_path / "store" / "a" / "b"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_blob_is_no_folder_and_a_folder_no_blob(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_if_absent("a/b", b"x")
    with pytest.raises(BadRequest):
        store.put_if_absent("a/b/c", b"y")
    with pytest.raises(BadRequest):
        store.put_if_absent("a", b"y")
    for key in ("a", "a/b/c"):
        with pytest.raises(BlobMissing):
            store.get(key, max_bytes=10)
        with pytest.raises(PreconditionFailed):
            store.put_if_match(key, b"y", "etag")
        store.delete(key)
    assert list(store.keys("a/b/")) == []
    assert store.get("a/b", max_bytes=10).content == b"x"


def test_a_lock_that_is_never_given_back_does_not_hang_us(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, lock_timeout_s=0.05)
    etag = store.put_if_absent("a", b"x")
    with pytest.raises(PreconditionFailed):
        store.put_if_match("a", b"y", "other")
    (lock,) = (tmp_path / ".locks").iterdir()
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match="lock"):
            store.put_if_match("a", b"y", etag)
    assert store.get("a", max_bytes=10).content == b"x"


@pytest.mark.parametrize("root", ["/proc/nothing", "/dev/null/store"])
def test_a_directory_that_cannot_be_used(root: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LocalStore(root)
    assert "\n" not in str(caught.value)


def test_a_directory_that_went_away(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreUnavailable):
        store.put_if_absent("a", b"x")


def test_a_disk_without_room_keeps_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    code = (
        "import resource, signal, sys; from pnode.storage.local import LocalStore; store = LocalStore(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "store.put_if_absent('a', bytes(2000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert "StoreUnavailable" in done.stderr
    assert list((tmp_path / ".staging").iterdir()) == []
    assert list(store.keys("")) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_processes_exclude_each_other(tmp_path: Path) -> None:
    code = (
        "import sys; from pnode.errors import PreconditionFailed; from pnode.storage.local import LocalStore\n"
        "store = LocalStore(sys.argv[1]); done = 0\n"
        "while done < 50:\n"
        "    blob = store.get('count', max_bytes=10)\n"
        "    try: store.put_if_match('count', b'%d' % (int(blob.content) + 1), blob.etag)\n"
        "    except PreconditionFailed: continue\n"
        "    done += 1\n"
    )
    LocalStore(tmp_path).put_if_absent("count", b"0")
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert LocalStore(tmp_path).get("count", max_bytes=10).content == b"150"


KEYS = st.sampled_from(["a", "b", "b.c", "d/e", "d/f", "d/g/h"])
CONTENTS = st.binary(max_size=8)


class AgainstADict(RuleBasedStateMachine):
    """Whatever is called in whatever order, the store is what a dict would be."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(prefix="store-")
        self.store = LocalStore(self.root)
        self.model: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(key=KEYS, content=CONTENTS)
    def put_if_absent(self, key: str, content: bytes) -> None:
        if key in self.model:
            with pytest.raises(PreconditionFailed):
                self.store.put_if_absent(key, content)
        else:
            self.etags[key] = self.store.put_if_absent(key, content)
            self.model[key] = content

    @rule(key=KEYS, content=CONTENTS)
    def put_if_match(self, key: str, content: bytes) -> None:
        if key in self.model:
            self.etags[key] = self.store.put_if_match(key, content, self.etags[key])
            self.model[key] = content
        else:
            with pytest.raises(PreconditionFailed):
                self.store.put_if_match(key, content, self.etags.get(key, "none"))

    @rule(key=KEYS, content=CONTENTS, other=KEYS)
    def put_with_another_etag(self, key: str, content: bytes, other: str) -> None:
        if self.model.get(key) != self.model.get(other) and other in self.model:
            with pytest.raises(PreconditionFailed):
                self.store.put_if_match(key, content, self.etags[other])

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.store.delete(key)
        self.model.pop(key, None)

    @rule(prefix=st.sampled_from(["", "b", "d", "d/", "d/g/", "z"]))
    def keys(self, prefix: str) -> None:
        assert sorted(self.store.keys(prefix)) == sorted(key for key in self.model if key.startswith(prefix))

    @rule()
    def reopen(self) -> None:
        self.store = LocalStore(self.root)

    @invariant()
    def holds_the_same(self) -> None:
        for key, content in self.model.items():
            assert self.store.get(key, max_bytes=8) == (content, self.etags[key])


TestAgainstADict = AgainstADict.TestCase


def test_the_owners_share_of_the_disk_stays_free(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, keep_free_bytes=1 << 62)
    with pytest.raises(StoreFull, match="of the disk would stay free"):
        store.put_if_absent("a/b", b"content")
    with pytest.raises(BlobMissing):
        store.get("a/b", max_bytes=10)
    assert LocalStore(tmp_path).put_if_absent("a/b", b"content")
