"""What the store keeps of a run: its spec, its generation, its manifests. All three outlive the orchestrator.

    runs/<run>/SPEC         the RunSpec, written once: another spec under the same id is a conflict for ever
    runs/<run>/GENERATION   the highest generation taken, raised by compare-and-set before it is used
    runs/<run>/HEAD         of ManifestLog: the newest run manifest

Since a generation is taken in the store, no two orchestrators, and no two lives of one, ever use the same.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from google.protobuf.message import DecodeError

from pnode.errors import BlobCorrupt, BlobMissing, Conflict, PNodeError, PreconditionFailed, StaleFence
from pnode.orchestrator.events import Stored
from pnode.storage.blob import BlobStore
from pnode.storage.manifest import ManifestLog, RunManifest
from pnode.v1 import orchestrator_pb2

log = logging.getLogger(__name__)

# A spec is declarative and small; this bounds what a broken store can make us read.
_MAX_SPEC_BYTES = 64 << 20
_MAX_GENERATION_BYTES = 32
# Lost races in a row, before the caller is told to come back.
_TRIES = 5


class RunJournal:
    """The record of one run in the store."""

    def __init__(self, store: BlobStore, run: str) -> None:
        self._store = store
        self._spec_key = f"runs/{run}/SPEC"
        self._generation_key = f"runs/{run}/GENERATION"
        self._log = ManifestLog(store, run)
        self._run = run

    def claim(self, spec: orchestrator_pb2.RunSpec) -> None:
        """Bind the run's id to this spec. Raises Conflict where it is bound to another."""
        try:
            self._store.put_if_absent(self._spec_key, spec.SerializeToString(deterministic=True))
        except PreconditionFailed:
            if self._claimed() != spec:
                raise Conflict(f"run {self._run!r} is in the store with another spec; choose another id") from None

    def _claimed(self) -> orchestrator_pb2.RunSpec:
        content = self._store.get(self._spec_key, max_bytes=_MAX_SPEC_BYTES).content
        try:
            # Compared as messages: the bytes of equal messages may differ between versions of protobuf.
            return orchestrator_pb2.RunSpec.FromString(content)
        except DecodeError:
            raise BlobCorrupt(f"{self._spec_key} is no RunSpec") from None

    def take_generation(self, at_least: int) -> int:
        """A generation that nobody ever had, at least this one."""
        for _ in range(_TRIES):
            try:
                return self._raise_generation(at_least)
            except PreconditionFailed:
                continue
        raise PreconditionFailed(f"{_TRIES} races for the generation of run {self._run!r} were lost")

    def _raise_generation(self, at_least: int) -> int:
        try:
            blob = self._store.get(self._generation_key, max_bytes=_MAX_GENERATION_BYTES)
        except BlobMissing:
            self._store.put_if_absent(self._generation_key, str(at_least).encode())
            return at_least
        if not blob.content.isdigit():
            raise BlobCorrupt(f"{self._generation_key} is no number")
        generation = max(int(blob.content) + 1, at_least)
        self._store.put_if_match(self._generation_key, str(generation).encode(), blob.etag)
        return generation

    def history(self) -> tuple[Stored, ...]:
        """The run's manifests, newest first."""
        return tuple(Stored(sha256, manifest) for manifest, sha256 in self._log.history())

    def commit(self, manifest: RunManifest, keep: int) -> Stored:
        """Make a manifest the newest, with the present newest as its parent. A retry finds it there and succeeds.

        Raises StaleFence where a later generation has committed, PreconditionFailed for a lost race.
        """
        head = self._log.head()
        if head is not None:
            newest, sha256 = head
            if newest.generation > manifest.generation:
                raise StaleFence(f"generation {newest.generation} of run {self._run!r} has committed already")
            if replace(newest, parent=None) == replace(manifest, parent=None):
                return Stored(sha256, newest)
            manifest = replace(manifest, parent=sha256)
        stored = Stored(self._log.commit(manifest), manifest)
        self._prune(keep)
        return stored

    def _prune(self, keep: int) -> None:
        try:
            self._log.prune(keep)
        except PNodeError as error:
            # The checkpoint stands; what is left over goes at the next one.
            log.warning("old checkpoints of run %s could not be removed: %s", self._run, error)
