"""Content-addressed blobs: equal bytes are one blob, a put that seemed to fail is read back, damage is found."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnode.errors import (
    BadRequest,
    BlobCorrupt,
    BlobMissing,
    PNodeError,
    PreconditionFailed,
    StoreUnavailable,
    TooLarge,
)
from pnode.storage.blob import BlobStore
from pnode.storage.content import content_key, get_content, put_content
from pnode.storage.local import LocalStore
from tests.storage.storage_fakes import LosesAnswers, LosesPuts, overwrite

CONTENT = b"a state of a VNode"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KEY = f"blobs/{SHA256[:2]}/{SHA256}"

AMBIGUOUS = [PreconditionFailed("412 on our own retry"), StoreUnavailable("timed out")]


def test_the_name_is_the_digest(store: BlobStore) -> None:
    assert put_content(store, CONTENT) == SHA256
    assert list(store.keys("blobs/")) == [KEY]
    assert get_content(store, SHA256, max_bytes=len(CONTENT)) == CONTENT


def test_equal_bytes_are_one_blob(store: BlobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: put_content(store, CONTENT), range(8))) == {SHA256}
    assert list(store.keys("blobs/")) == [KEY]


def test_missing(store: BlobStore) -> None:
    with pytest.raises(BlobMissing):
        get_content(store, SHA256, max_bytes=10)


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], CONTENT[:-1] + b"E", CONTENT + b"!"])
def test_damage_is_found_and_mended_by_the_next_put(store: BlobStore, damaged: bytes) -> None:
    put_content(store, CONTENT)
    overwrite(store, KEY, damaged)
    with pytest.raises(BlobCorrupt):
        get_content(store, SHA256, max_bytes=100)
    put_content(store, CONTENT)
    assert get_content(store, SHA256, max_bytes=100) == CONTENT


def test_no_more_is_read_than_asked_for(store: BlobStore) -> None:
    put_content(store, CONTENT)
    with pytest.raises(TooLarge):
        get_content(store, SHA256, max_bytes=len(CONTENT) - 1)


@pytest.mark.parametrize("error", AMBIGUOUS)
def test_a_put_that_landed_and_seemed_to_fail_is_success(store: BlobStore, error: PNodeError) -> None:
    assert put_content(LosesAnswers(store, error), CONTENT) == SHA256
    assert get_content(store, SHA256, max_bytes=100) == CONTENT


def test_a_put_that_did_not_land_fails(store: BlobStore) -> None:
    with pytest.raises(StoreUnavailable, match="timed out"):
        put_content(LosesPuts(store, StoreUnavailable("timed out")), CONTENT)


@pytest.mark.parametrize("sha256", ["", "../../etc/passwd", SHA256.upper(), SHA256[:-1], SHA256 + "0", "g" * 64])
def test_only_digests_name_content(sha256: str) -> None:
    with pytest.raises(BadRequest):
        content_key(sha256)


@given(contents=st.lists(st.binary(max_size=64), max_size=8))
def test_any_bytes_come_back(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    store = LocalStore(Path(tmp_path_factory.mktemp("store")))
    digests = [put_content(store, content) for content in contents]
    assert [get_content(store, digest, max_bytes=64) for digest in digests] == contents
    assert len(set(digests)) == len(set(contents))
