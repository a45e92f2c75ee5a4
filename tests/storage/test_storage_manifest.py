"""The commit point: one head wins, parents chain, damage costs one manifest only, garbage goes and the rest stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest

from pnode.errors import BadRequest, BlobCorrupt, BlobMissing, PNodeError, PreconditionFailed, StoreUnavailable
from pnode.storage.blob import BlobStore
from pnode.storage.content import content_key, get_content, put_content
from pnode.storage.manifest import ManifestLog, Record, RunManifest, sweep
from tests.storage.storage_fakes import LosesAnswers, LosesPuts, manifest, overwrite, record

NUM_WRITERS = 8


def state(store: BlobStore, vnode: str, content: bytes) -> Record:
    put_content(store, content)
    return record(vnode, content)


def commit(store: BlobStore, *versions: int, run: str = "run") -> list[str]:
    """Commit checkpoints of one VNode whose state is different at every version; their digests, oldest first."""
    log = ManifestLog(store, run)
    digests = []
    for version in versions:
        head = log.head()
        states = state(store, "v", b"version %d" % version)
        digests.append(log.commit(manifest(version, head[1] if head else None, states, run=run)))
    return digests


def is_stored(store: BlobStore, sha256: str) -> bool:
    try:
        get_content(store, sha256, max_bytes=1 << 20)
    except BlobMissing:
        return False
    return True


def test_a_run_without_a_commit_has_no_head(store: BlobStore) -> None:
    log = ManifestLog(store, "run")
    assert log.head() is None
    assert list(log.history()) == []
    assert log.prune(1) == 0


def test_history_is_a_chain_newest_first(store: BlobStore) -> None:
    digests = commit(store, 1, 2, 3)
    history = list(ManifestLog(store, "run").history())
    assert [digest for _, digest in history] == digests[::-1]
    assert [each.version for each, _ in history] == [3, 2, 1]
    assert [each.parent for each, _ in history] == [digests[1], digests[0], None]
    assert ManifestLog(store, "run").head() == history[0]


def test_runs_do_not_see_each_other(store: BlobStore) -> None:
    commit(store, 1, run="one")
    commit(store, 7, run="two")
    assert [each.version for each, _ in ManifestLog(store, "one").history()] == [1]
    assert [each.version for each, _ in ManifestLog(store, "two").history()] == [7]


def test_one_of_many_commits_on_one_parent_wins(store: BlobStore) -> None:
    (first,) = commit(store, 1)
    start = Barrier(NUM_WRITERS, timeout=30)

    def won(number: int) -> bool:
        start.wait()
        try:
            ManifestLog(store, "run").commit(manifest(2, first, generation=number))
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        winners = [number for number, has_won in enumerate(pool.map(won, range(NUM_WRITERS))) if has_won]
    history = list(ManifestLog(store, "run").history())
    assert [each.generation for each, _ in history[:1]] == winners
    assert len(history) == 2


def test_a_commit_on_another_parent_than_the_newest_is_refused(store: BlobStore) -> None:
    first, second = commit(store, 1, 2)
    log = ManifestLog(store, "run")
    for parent in (None, first, "0" * 64):
        with pytest.raises(PreconditionFailed):
            log.commit(manifest(3, parent))
    assert next(log.history())[1] == second


def test_a_commit_may_be_retried(store: BlobStore) -> None:
    (first,) = commit(store, 1)
    log = ManifestLog(store, "run")
    again = manifest(2, first)
    assert log.commit(again) == log.commit(again)
    assert len(list(log.history())) == 2


@pytest.mark.parametrize("error", [PreconditionFailed("412 on our own retry"), StoreUnavailable("timed out")])
def test_a_commit_that_landed_and_seemed_to_fail_is_success(store: BlobStore, error: PNodeError) -> None:
    log = ManifestLog(LosesAnswers(store, error), "run")
    first = log.commit(manifest(1, None))
    second = log.commit(manifest(2, first))
    assert [digest for _, digest in ManifestLog(store, "run").history()] == [second, first]


def test_a_commit_that_did_not_land_fails(store: BlobStore) -> None:
    (first,) = commit(store, 1)
    with pytest.raises(StoreUnavailable):
        ManifestLog(LosesPuts(store, StoreUnavailable("timed out")), "run").commit(manifest(2, first))
    assert next(ManifestLog(store, "run").history())[1] == first


def test_a_manifest_of_another_run_is_refused(store: BlobStore) -> None:
    with pytest.raises(BadRequest):
        ManifestLog(store, "run").commit(manifest(1, None, run="other"))


@pytest.mark.parametrize("run", ["", "../x", "a/b", ".", "a b", "x" * 300])
def test_a_run_that_is_no_name_is_refused(store: BlobStore, run: str) -> None:
    with pytest.raises(BadRequest):
        ManifestLog(store, run).commit(manifest(1, None, run=run))


@pytest.mark.parametrize("damaged", [None, b"", b"{}", b"no json at all"])
def test_a_lost_manifest_does_not_take_its_parents_with_it(store: BlobStore, damaged: bytes | None) -> None:
    first, second = commit(store, 1, 2)
    if damaged is None:
        store.delete(content_key(second))
    else:
        overwrite(store, content_key(second), damaged)
    log = ManifestLog(store, "run")
    assert [digest for _, digest in log.history()] == [first]
    third = log.commit(manifest(3, first))
    assert [digest for _, digest in log.history()] == [third, first]


@pytest.mark.parametrize("damaged", [b"", b"{}", b'["x"]', b"[1]", b'{"a":"b"}', b"[" * 100_000, b'["' + b"0" * 64])
def test_a_damaged_head_is_corrupt(store: BlobStore, damaged: bytes) -> None:
    commit(store, 1)
    overwrite(store, "runs/run/HEAD", damaged)
    log = ManifestLog(store, "run")
    for call in (log.head, lambda: list(log.history()), lambda: log.commit(manifest(2, None)), lambda: log.prune(1)):
        with pytest.raises(BlobCorrupt):
            call()


def test_pruning_keeps_the_newest_and_removes_what_only_the_others_needed(store: BlobStore) -> None:
    log = ManifestLog(store, "run")
    frozen = state(store, "a", b"never changes")
    parent = None
    for version in (1, 2, 3, 4):
        parent = log.commit(manifest(version, parent, frozen, state(store, "b", b"%d" % version)))
    # Two manifests, and the states that were theirs alone.
    assert log.prune(2) == 4
    assert [each.version for each, _ in log.history()] == [4, 3]
    assert is_stored(store, frozen.sha256)
    for version in (1, 2, 3, 4):
        assert is_stored(store, record("b", b"%d" % version).sha256) == (version > 2)
    assert log.prune(2) == 0


def test_pruning_keeps_what_another_run_needs(store: BlobStore) -> None:
    commit(store, 1, 2, run="one")
    commit(store, 1, run="two")
    assert ManifestLog(store, "one").prune(1) == 1
    assert is_stored(store, record("v", b"version 1").sha256)


def test_a_damaged_head_of_another_run_stops_the_sweep(store: BlobStore) -> None:
    commit(store, 1, 2, run="one")
    commit(store, 1, run="two")
    overwrite(store, "runs/two/HEAD", b"?")
    with pytest.raises(BlobCorrupt):
        ManifestLog(store, "one").prune(1)
    assert is_stored(store, record("v", b"version 1").sha256)


def test_uploads_that_nobody_committed_are_no_business_of_prune(store: BlobStore) -> None:
    commit(store, 1, 2)
    uploaded = state(store, "v", b"version 3")
    ManifestLog(store, "run").prune(1)
    assert is_stored(store, uploaded.sha256)
    assert sweep(store, {uploaded.sha256}) == 1
    assert not is_stored(store, uploaded.sha256)


def test_the_newest_cannot_be_pruned(store: BlobStore) -> None:
    with pytest.raises(BadRequest):
        ManifestLog(store, "run").prune(0)


WHOLE = manifest(3, "0" * 64, record("v0", b"x"), record("v1", b"y"))


def test_equal_manifests_are_equal_bytes() -> None:
    assert RunManifest.from_bytes(WHOLE.to_bytes()) == WHOLE
    assert WHOLE.to_bytes().startswith(b'{"cursor":3,"generation":1,')


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{" * 100_000,
        WHOLE.to_bytes()[:-1],
        WHOLE.to_bytes() + b" ",
        WHOLE.to_bytes().replace(b'"version":3', b'"version":3.0'),
        WHOLE.to_bytes().replace(b'"version":3', b'"version":"3"'),
        WHOLE.to_bytes().replace(b'"version":3', b'"version":-1'),
        WHOLE.to_bytes().replace(b'"version":3', b'"version":true'),
        WHOLE.to_bytes().replace(b'"version":3', b'"version":9223372036854775808'),
        WHOLE.to_bytes().replace(b'"version":3', b'"version":3,"version":3'),
        WHOLE.to_bytes().replace(b'"version":3', b'"version":3,"weight":1'),
        WHOLE.to_bytes().replace(b'"size_bytes":1', b'"size_bytes":1,"more":1'),
        WHOLE.to_bytes().replace(b'"run":"run"', b'"run":"\xff"'),
        WHOLE.to_bytes().replace(b'"parent":"0', b'"parent":"../0'),
    ],
)
def test_other_bytes_are_no_manifest(content: bytes) -> None:
    assert content != WHOLE.to_bytes()
    with pytest.raises(BlobCorrupt):
        RunManifest.from_bytes(content)


@pytest.mark.parametrize(
    "bad",
    [
        replace(WHOLE, version=-1),
        replace(WHOLE, parent="x"),
        replace(WHOLE, vnodes=(Record("v", "no digest", 1),)),
        replace(WHOLE, vnodes=(Record("v", "0" * 64, -1),)),
        replace(WHOLE, profile="p" * 201),
    ],
)
def test_what_could_not_be_read_back_is_not_written(store: BlobStore, bad: RunManifest) -> None:
    with pytest.raises(BadRequest):
        ManifestLog(store, "run").commit(bad)
    assert list(store.keys("")) == []
