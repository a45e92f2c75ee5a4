"""Run manifests: the commit point of a checkpoint, and a run's history of them.

A manifest is a content-addressed blob. `runs/<run>/HEAD` lists the digests of a run's manifests, newest first, and is
changed by compare-and-set alone: whoever changes it has committed. It is a list and not only the newest digest, so that
a manifest that got lost or damaged does not take its parents with it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pnode.errors import BadRequest, BlobCorrupt, BlobMissing, PreconditionFailed, StoreUnavailable, TooLarge
from pnode.storage.blob import BlobStore, check_key
from pnode.storage.content import content_key, get_content, put_content

log = logging.getLogger(__name__)

RUNS = "runs/"
_HEAD = "/HEAD"

# What a hostile or broken store can make us read. A record takes about 150 bytes, a digest 67.
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_HEAD_BYTES = 4 << 20

Name = Annotated[str, Field(min_length=1, max_length=200)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", max_length=64)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class Record:
    """One VNode's state: the digest and the size of its blob."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    vnode: Name
    sha256: Digest
    size_bytes: Count


@dataclass(frozen=True)
class RunManifest:
    """One committed checkpoint of a run: all VNodes' states at one version, in model order.

    `cursor` counts the batches that were consumed; `profile` is the numerics class that the states were computed by;
    `parent` is the digest of the manifest before.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    run: Name
    version: Count
    generation: Count
    cursor: Count
    profile: Annotated[str, Field(max_length=200)]
    parent: Digest | None
    vnodes: tuple[Record, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal manifests are equal bytes."""
        return _canonical(asdict(self))

    @classmethod
    def from_bytes(cls, content: bytes) -> RunManifest:
        """The manifest that these bytes are. Raises BlobCorrupt for any other bytes than `to_bytes` writes."""
        try:
            manifest = _MANIFEST.validate_json(content)
        except ValidationError as error:
            raise BlobCorrupt(f"no run manifest: {_first(error)}") from None
        if manifest.to_bytes() != content:
            raise BlobCorrupt("a run manifest that is not canonical")
        return manifest


_MANIFEST = TypeAdapter(RunManifest)
_DIGESTS = TypeAdapter(tuple[Digest, ...])


class Head(NamedTuple):
    """The digests of a run's manifests, newest first, and the etag of that list; None before the first commit."""

    digests: tuple[str, ...]
    etag: str | None


class ManifestLog:
    """The committed manifests of one run. Holds no state of its own, so that any number may look at one run."""

    def __init__(self, store: BlobStore, run: str) -> None:
        self._store = store
        self._run = run
        if "/" in run:
            raise BadRequest(f"{run[:80]!r} is no name of a run")
        self._key = check_key(f"{RUNS}{run}{_HEAD}")

    def head(self) -> tuple[RunManifest, str] | None:
        """The newest readable manifest and its digest; None where there is none."""
        return next(self.history(), None)

    def history(self) -> Iterator[tuple[RunManifest, str]]:
        """The readable manifests and their digests, newest first. Raises BlobCorrupt if the list itself is damaged."""
        return readable(self._store, self._read_head().digests)

    def commit(self, manifest: RunManifest) -> str:
        """Make a manifest the newest and return its digest. Its parent must be the newest readable one.

        A retry of a commit that went through succeeds again. Raises PreconditionFailed for a lost race, BadRequest
        for a manifest that could not be read back.
        """
        head = self._read_head()
        sha256 = self._put(manifest)
        newest = next((digest for _, digest in readable(self._store, head.digests)), None)
        if newest == sha256:
            return sha256
        if manifest.parent != newest:
            raise PreconditionFailed(f"the newest manifest of run {self._run!r} is {newest}, not {manifest.parent}")
        # Newer ones than the newest readable are lost, and no longer worth a line.
        kept = head.digests[head.digests.index(newest) :] if newest else ()
        self._write_head((sha256, *kept), head.etag)
        return sha256

    def prune(self, keep: int) -> int:
        """Forget all but the newest `keep` readable manifests, and remove what no run needs any more.

        Returns the number of blobs that were removed. Raises PreconditionFailed where a commit came in between.
        """
        if keep < 1:
            raise BadRequest("the newest manifest cannot be pruned")
        head = self._read_head()
        kept = tuple(digest for _, digest in readable(self._store, head.digests))[:keep]
        pruned = tuple(digest for digest in head.digests if digest not in kept)
        if not pruned:
            return 0
        candidates = references(self._store, pruned)
        self._write_head(kept, head.etag)
        return sweep(self._store, candidates)

    def _put(self, manifest: RunManifest) -> str:
        content = manifest.to_bytes()
        if manifest.run != self._run or len(content) > _MAX_MANIFEST_BYTES:
            raise BadRequest(f"a manifest of run {manifest.run!r} with {len(content)} bytes cannot be of {self._run!r}")
        try:
            RunManifest.from_bytes(content)
        except BlobCorrupt as error:
            raise BadRequest(error.message) from None
        return put_content(self._store, content)

    def _read_head(self) -> Head:
        try:
            return _read_head(self._store, self._key)
        except BlobMissing:
            return Head((), None)

    def _write_head(self, digests: tuple[str, ...], etag: str | None) -> None:
        content = _canonical(list(digests))
        try:
            if etag is None:
                self._store.put_if_absent(self._key, content)
            else:
                self._store.put_if_match(self._key, content, etag)
        except (PreconditionFailed, StoreUnavailable):
            # It may have been our own put that won, and its answer that was lost. A line names this very manifest by
            # its digest, so that nobody else can have written it for another.
            if digests[0] not in self._read_head().digests:
                raise


def readable(store: BlobStore, digests: Iterable[str]) -> Iterator[tuple[RunManifest, str]]:
    """Those manifests of `digests` that are there and whole."""
    for digest in digests:
        try:
            yield RunManifest.from_bytes(get_content(store, digest, max_bytes=_MAX_MANIFEST_BYTES)), digest
        except (BlobMissing, BlobCorrupt, TooLarge) as error:
            log.warning("run manifest %s cannot be read and is passed over: %s", digest, error)


def references(store: BlobStore, manifests: Iterable[str]) -> set[str]:
    """The digests of these manifests and of all states that they name."""
    digests = tuple(manifests)
    named = {record.sha256 for manifest, _ in readable(store, digests) for record in manifest.vnodes}
    return named | set(digests)


def sweep(store: BlobStore, candidates: set[str]) -> int:
    """Remove those blobs of `candidates` that no manifest of any run needs; returns their number.

    All runs are asked, for equal states of two runs are one blob. A run that uploads such a state just now and commits
    it after that question may find it gone: it then restores from its parent manifest, or puts the state again.
    """
    heads = [key for key in store.keys(RUNS) if key.endswith(_HEAD)]
    needed: set[str] = set()
    for key in heads:
        needed |= references(store, _read_head(store, key).digests)
    garbage = sorted(candidates - needed)
    for digest in garbage:
        store.delete(content_key(digest))
    return len(garbage)


def _read_head(store: BlobStore, key: str) -> Head:
    blob = store.get(key, max_bytes=_MAX_HEAD_BYTES)
    try:
        return Head(_DIGESTS.validate_json(blob.content), blob.etag)
    except ValidationError as error:
        raise BlobCorrupt(f"{key} is no list of manifests: {_first(error)}") from None


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _first(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
