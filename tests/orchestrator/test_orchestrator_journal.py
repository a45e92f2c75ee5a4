"""What the store keeps of a run, in a real directory: specs bound, generations never twice, manifests in a row."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from orchestrator_fakes import digest, run_spec

from pnode.errors import BlobCorrupt, Conflict, StaleFence, StoreUnavailable
from pnode.orchestrator.journal import RunJournal
from pnode.storage.content import content_key
from pnode.storage.local import LocalStore
from pnode.storage.manifest import ManifestLog, Record, RunManifest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    store = LocalStore(tmp_path)
    yield store
    store.close()


@pytest.fixture
def journal(store: LocalStore) -> RunJournal:
    return RunJournal(store, "r")


def manifest(version: int, generation: int = 1) -> RunManifest:
    records = tuple(Record(f"v{index}", digest(f"v{index}@{version}"), 9) for index in range(2))
    return RunManifest("r", version, generation, version, "samebits-1", None, records)


def test_an_id_is_bound_to_its_first_spec(journal: RunJournal, store: LocalStore) -> None:
    journal.claim(run_spec())
    journal.claim(run_spec())
    RunJournal(store, "r").claim(run_spec())
    with pytest.raises(Conflict, match="choose another id"):
        journal.claim(run_spec(memory=(1, 2)))
    RunJournal(store, "other").claim(run_spec("other"))


def test_a_damaged_spec_is_named(journal: RunJournal, store: LocalStore) -> None:
    store.put_if_absent("runs/r/SPEC", b"\xff\xff\xff")
    with pytest.raises(BlobCorrupt, match="runs/r/SPEC"):
        journal.claim(run_spec())


def test_generations_rise_from_life_to_life(journal: RunJournal, store: LocalStore) -> None:
    assert [journal.take_generation(1), journal.take_generation(1), journal.take_generation(7)] == [1, 2, 7]
    assert RunJournal(store, "r").take_generation(1) == 8
    assert RunJournal(store, "other").take_generation(3) == 3


def test_no_generation_is_taken_twice(store: LocalStore) -> None:
    with ThreadPoolExecutor(4) as threads:
        taken = list(threads.map(lambda _: RunJournal(store, "r").take_generation(1), range(4)))
    assert sorted(taken) == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"seven", b"-1", "٣".encode()])
def test_a_damaged_generation_is_named(journal: RunJournal, store: LocalStore, content: bytes) -> None:
    store.put_if_absent("runs/r/GENERATION", content)
    with pytest.raises(BlobCorrupt, match="runs/r/GENERATION"):
        journal.take_generation(1)


def test_commits_make_a_row(journal: RunJournal) -> None:
    first = journal.commit(manifest(1), keep=5)
    second = journal.commit(manifest(2), keep=5)
    assert second.manifest == replace(manifest(2), parent=first.sha256)
    assert journal.history() == (second, first)


def test_a_retried_commit_is_the_same_commit(journal: RunJournal) -> None:
    journal.commit(manifest(1), keep=5)
    second = journal.commit(manifest(2), keep=5)
    assert journal.commit(manifest(2), keep=5) == second
    assert len(journal.history()) == 2


def test_a_later_generation_fences_an_earlier_one(journal: RunJournal) -> None:
    newest = journal.commit(manifest(3, generation=2), keep=5)
    with pytest.raises(StaleFence, match="generation 2"):
        journal.commit(manifest(4, generation=1), keep=5)
    assert journal.history() == (newest,)


def test_a_later_generation_may_go_back(journal: RunJournal) -> None:
    journal.commit(manifest(9, generation=1), keep=5)
    journal.commit(manifest(4, generation=2), keep=5)
    assert [stored.manifest.version for stored in journal.history()] == [4, 9]


def test_only_so_many_are_kept_and_a_failing_prune_loses_nothing(
    journal: RunJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2, 3):
        journal.commit(manifest(version), keep=2)
    assert [stored.manifest.version for stored in journal.history()] == [3, 2]

    def fails(_log: ManifestLog, _keep: int) -> int:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(ManifestLog, "prune", fails)
    journal.commit(manifest(4), keep=2)
    assert [stored.manifest.version for stored in journal.history()] == [4, 3, 2]


def test_an_unreadable_manifest_is_passed_over(journal: RunJournal, store: LocalStore) -> None:
    journal.commit(manifest(1), keep=5)
    newest = journal.commit(manifest(2), keep=5)
    store.delete(content_key(newest.sha256))
    assert [stored.manifest.version for stored in journal.history()] == [1]
    assert journal.commit(manifest(3, generation=2), keep=5).manifest.version == 3


def test_a_damaged_row_is_named(journal: RunJournal, store: LocalStore) -> None:
    store.put_if_absent("runs/r/HEAD", b"not json")
    with pytest.raises(BlobCorrupt, match="runs/r/HEAD"):
        journal.history()
