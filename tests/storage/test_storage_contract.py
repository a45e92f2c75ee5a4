"""What every blob store keeps: one suite, run against the local directory and a real S3 server."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from pnode.errors import BadRequest, BlobMissing, PreconditionFailed, TooLarge
from pnode.storage.blob import BlobStore
from pnode.storage.probe import probe_conditional_puts

NUM_WRITERS = 16

HOSTILE_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "../x",
    "a/../x",
    "a/..",
    "./a",
    "a//b",
    "a/",
    ".staging/x",
    "a/.hidden",
    "a\\b",
    "a\x00b",
    "a\nb",
    "a b",
    "a%2e%2e",
    "é",
    "-rf",
    "k" * 201,
    "/".join(["k" * 100] * 6),
]


def race(write: Callable[[int], str]) -> list[int]:
    """The numbers of the writers that won, when all begin at once."""
    start = Barrier(NUM_WRITERS, timeout=30)

    def won(number: int) -> bool:
        start.wait()
        try:
            write(number)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        return [number for number, has_won in enumerate(pool.map(won, range(NUM_WRITERS))) if has_won]


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 20_000], ids=["empty", "one", "5MB"])
def test_what_was_put_comes_back(store: BlobStore, content: bytes) -> None:
    etag = store.put_if_absent("a/b.c", content)
    assert store.get("a/b.c", max_bytes=len(content)) == (content, etag)


def test_missing(store: BlobStore) -> None:
    with pytest.raises(BlobMissing):
        store.get("a", max_bytes=10)


def test_a_taken_key_keeps_what_it_holds(store: BlobStore) -> None:
    etag = store.put_if_absent("a", b"first")
    with pytest.raises(PreconditionFailed):
        store.put_if_absent("a", b"second")
    assert store.get("a", max_bytes=10) == (b"first", etag)


def test_replacing_takes_the_etag_of_what_is_there(store: BlobStore) -> None:
    first = store.put_if_absent("a", b"first")
    second = store.put_if_match("a", b"second", first)
    assert second != first
    with pytest.raises(PreconditionFailed):
        store.put_if_match("a", b"third", first)
    assert store.get("a", max_bytes=10) == (b"second", second)


def test_nothing_is_there_to_replace(store: BlobStore) -> None:
    etag = store.put_if_absent("a", b"first")
    store.delete("a")
    with pytest.raises(PreconditionFailed):
        store.put_if_match("a", b"second", etag)
    with pytest.raises(BlobMissing):
        store.get("a", max_bytes=10)


def test_one_of_many_first_writers_wins(store: BlobStore) -> None:
    winners = race(lambda number: store.put_if_absent("a", b"%d" % number))
    assert len(winners) == 1
    assert store.get("a", max_bytes=10).content == b"%d" % winners[0]


def test_one_of_many_replacing_writers_wins(store: BlobStore) -> None:
    etag = store.put_if_absent("a", b"before")
    winners = race(lambda number: store.put_if_match("a", b"%d" % number, etag))
    assert len(winners) == 1
    assert store.get("a", max_bytes=10).content == b"%d" % winners[0]


def test_a_counter_raised_by_many_loses_no_count(store: BlobStore) -> None:
    store.put_if_absent("count", b"0")

    def add_one(number: int) -> None:
        del number
        while True:
            blob = store.get("count", max_bytes=10)
            try:
                store.put_if_match("count", b"%d" % (int(blob.content) + 1), blob.etag)
            except PreconditionFailed:
                continue
            return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_one, range(20)))
    assert store.get("count", max_bytes=10).content == b"20"


def test_no_more_is_read_than_asked_for(store: BlobStore) -> None:
    store.put_if_absent("a", b"x" * 1000)
    with pytest.raises(TooLarge):
        store.get("a", max_bytes=999)
    assert len(store.get("a", max_bytes=1000).content) == 1000


def test_delete_may_come_twice(store: BlobStore) -> None:
    store.put_if_absent("a", b"x")
    store.delete("a")
    store.delete("a")
    with pytest.raises(BlobMissing):
        store.get("a", max_bytes=10)
    store.put_if_absent("a", b"again")


def test_keys_by_prefix(store: BlobStore) -> None:
    names = ["b", "a/2", "a/10", "a-b", "a/b/c", "ab"]
    for name in names:
        store.put_if_absent(name, b"x")
    for prefix in ("", "a/", "a", "a/b", "b"):
        assert sorted(store.keys(prefix)) == sorted(name for name in names if name.startswith(prefix))
    assert list(store.keys("a/1")) == ["a/10"]
    assert list(store.keys("nothing/here")) == []


def test_more_keys_than_a_page_holds(store: BlobStore) -> None:
    names = [f"n/{number:04d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put_if_absent(name, b""), names))
    assert sorted(store.keys("n/")) == names


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_keys_that_could_mean_another_place_are_refused(store: BlobStore, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get(key, max_bytes=10),
        lambda: store.put_if_absent(key, b"x"),
        lambda: store.put_if_match(key, b"x", "etag"),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(BadRequest):
            call()


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", ".staging", "a//", "a b"])
def test_prefixes_that_could_mean_another_place_are_refused(store: BlobStore, prefix: str) -> None:
    with pytest.raises(BadRequest):
        list(store.keys(prefix))


def test_an_etag_of_the_wrong_kind_matches_nothing(store: BlobStore) -> None:
    store.put_if_absent("a", b"x")
    for etag in ("", "*", "nonsense", '"0123"', '"0123", "4567"'):
        with pytest.raises(PreconditionFailed):
            store.put_if_match("a", b"y", etag)
    assert store.get("a", max_bytes=10).content == b"x"


def test_conditional_puts_are_honoured(store: BlobStore) -> None:
    probe_conditional_puts(store)
    assert list(store.keys("")) == []
