"""What a node may keep in the store: counted over restarts, in a directory and in a bucket, until it is gone there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_world import soon, specs

from pnode.errors import Busy, SpecError, StoreFull, StoreUnavailable
from pnode.node.admission import Guests, admit, kept_bytes
from pnode.node.budget import Budget
from pnode.node.quota import Quota
from pnode.node.shelf import StateShelf
from pnode.storage.blob import BlobStore
from pnode.storage.content import content_key, content_sha256
from pnode.storage.local import LocalStore
from pnode.storage.s3 import S3Store
from pnode.vnode import sizes
from tests.seaweed import S3Endpoint

STATES = [bytes([number]) * 100 for number in range(8)]


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BlobStore]:
    if request.param == "local":
        yield LocalStore(tmp_path / "store")
        return
    s3: S3Endpoint = request.getfixturevalue("s3_endpoint")
    for name, value in s3.environ().items():
        monkeypatch.setenv(name, value)
    bucket = S3Store(s3.bucket, f"quota-{tmp_path.name}", endpoint_url=s3.url)
    yield bucket
    bucket.close()


def open_quota(store: BlobStore, tmp_path: Path, most_bytes: int | None) -> Quota:
    return Quota(store, tmp_path / "uploads.json", most_bytes)


def test_what_is_kept_counts_until_retention_removes_it(store: BlobStore, tmp_path: Path) -> None:
    quota = open_quota(store, tmp_path, 250)
    shelf = StateShelf(store, quota)
    for state in STATES[:2]:
        shelf.upload("v", 1, state, soon())
    message = (
        "a state of 100 bytes has no room in the store: 200 of the 250 that limits.disk grants are taken, by 2 states"
    )
    with pytest.raises(StoreFull, match=message):
        shelf.upload("v", 1, STATES[2], soon())
    assert list(store.keys(content_key(content_sha256(STATES[2])))) == [], "nothing was written"
    store.delete(content_key(content_sha256(STATES[0])))
    shelf.upload("v", 1, STATES[2], soon())
    assert quota.used_bytes == 200


def test_equal_states_are_one_blob_and_count_once(store: BlobStore, tmp_path: Path) -> None:
    shelf = StateShelf(store, open_quota(store, tmp_path, 100))
    assert shelf.upload("v", 1, STATES[0], soon()).sha256 == shelf.upload("v", 2, STATES[0], soon()).sha256


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    StateShelf(store, open_quota(store, tmp_path, None)).upload("v", 1, STATES[0], soon())
    again = open_quota(store, tmp_path, 150)
    assert again.used_bytes == 100
    with pytest.raises(StoreFull):
        StateShelf(store, again).upload("v", 1, STATES[1], soon())
    again.most_bytes = 200
    StateShelf(store, again).upload("v", 1, STATES[1], soon())


@pytest.mark.parametrize("text", ["{", "[1]", '{"../../etc": 5}', '{"a": 5}', "\xff"])
def test_a_damaged_list_is_no_reason_not_to_start(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "uploads.json").write_text(text, encoding="latin-1")
    quota = open_quota(LocalStore(tmp_path / "store"), tmp_path, 5)
    assert quota.used_bytes == 0
    assert "is not counted" in caplog.text


def test_an_upload_that_failed_takes_no_room(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store", keep_free_bytes=1 << 62)
    shelf = StateShelf(store, open_quota(store, tmp_path, 100))
    for state in STATES:
        with pytest.raises(StoreFull, match="would stay free"):
            shelf.upload("v", 1, state, soon())


def test_room_is_held_while_an_upload_is_under_way(tmp_path: Path) -> None:
    """It is not in the store yet, and must not be struck out for that."""
    store = LocalStore(tmp_path / "store")
    quota = open_quota(store, tmp_path, 100)
    with quota.room(content_sha256(STATES[0]), 100), pytest.raises(StoreFull):
        StateShelf(store, quota).upload("v", 1, STATES[1], soon())
    StateShelf(store, quota).upload("v", 1, STATES[1], soon())


def test_of_many_at_once_as_many_as_fit_get_through(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    shelf = StateShelf(store, open_quota(store, tmp_path, 300))
    refused: list[StoreUnavailable] = []

    def upload(state: bytes) -> None:
        try:
            shelf.upload("v", 1, state, soon())
        except StoreUnavailable as error:
            refused.append(error)

    threads = [threading.Thread(target=upload, args=(state,)) for state in STATES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == len(STATES) - 3
    assert len(list(store.keys("blobs/"))) == 3


def test_the_list_does_not_grow_for_ever(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    quota = open_quota(store, tmp_path, None)
    for number in range(600):
        with quota.room(content_sha256(str(number).encode()), 10):
            continue
    assert len(json.loads((tmp_path / "uploads.json").read_text())) <= 257


def test_admission_counts_the_states_that_a_vnode_will_keep() -> None:
    roomy = Budget(1 << 40, machine=lambda: 1 << 40, free=lambda: 1 << 40)
    spec = specs()[0]
    spec.checkpoint.keep = 3
    need = 4 * sizes.state_bytes(spec)
    assert kept_bytes(spec) == need
    admit(spec, Guests(0, 0, 0), roomy, max_vnodes=2, disk_bytes=need)
    admit(spec, Guests(1, 0, 0, 5), roomy, max_vnodes=2, disk_bytes=need + 5)
    with pytest.raises(SpecError, match=rf"checkpoint\.keep: 3 states: with one more they take {need} bytes"):
        admit(spec, Guests(0, 0, 0), roomy, max_vnodes=2, disk_bytes=need - 1)
    with pytest.raises(Busy, match=rf"needs {need} bytes in the store, {need - 1} are free"):
        admit(spec, Guests(1, 0, 0, 6), roomy, max_vnodes=2, disk_bytes=need + 5)
