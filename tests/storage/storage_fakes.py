"""Stores with one fault each, around a real one; and runs' manifests to put into them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pnode.errors import PNodeError
from pnode.storage.blob import Blob, BlobStore
from pnode.storage.manifest import Record, RunManifest


class Around:
    """Another store, as it is."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store

    def get(self, key: str, *, max_bytes: int) -> Blob:
        return self.store.get(key, max_bytes=max_bytes)

    def put_if_absent(self, key: str, content: bytes) -> str:
        return self.store.put_if_absent(key, content)

    def put_if_match(self, key: str, content: bytes, etag: str) -> str:
        return self.store.put_if_match(key, content, etag)

    def delete(self, key: str) -> None:
        self.store.delete(key)

    def keys(self, prefix: str) -> Iterator[str]:
        return self.store.keys(prefix)

    def close(self) -> None:
        self.store.close()


class LosesAnswers(Around):
    """Every put goes through, and then fails all the same."""

    def __init__(self, store: BlobStore, error: PNodeError) -> None:
        super().__init__(store)
        self.error = error

    def put_if_absent(self, key: str, content: bytes) -> str:
        super().put_if_absent(key, content)
        raise self.error

    def put_if_match(self, key: str, content: bytes, etag: str) -> str:
        super().put_if_match(key, content, etag)
        raise self.error


class LosesPuts(Around):
    """No put goes through."""

    def __init__(self, store: BlobStore, error: PNodeError) -> None:
        super().__init__(store)
        self.error = error

    def put_if_absent(self, key: str, content: bytes) -> str:
        raise self.error

    def put_if_match(self, key: str, content: bytes, etag: str) -> str:
        raise self.error


class IgnoresIfNoneMatch(Around):
    """As some servers do: the condition is accepted and forgotten."""

    def put_if_absent(self, key: str, content: bytes) -> str:
        self.store.delete(key)
        return self.store.put_if_absent(key, content)


class IgnoresIfMatch(Around):
    """The other condition is forgotten."""

    def put_if_match(self, key: str, content: bytes, etag: str) -> str:
        self.store.delete(key)
        return self.store.put_if_absent(key, content)


class RefusesTooLate(Around):
    """Says no, and stores all the same."""

    def put_if_match(self, key: str, content: bytes, etag: str) -> str:
        try:
            return self.store.put_if_match(key, content, etag)
        except PNodeError:
            self.store.delete(key)
            self.store.put_if_absent(key, content)
            raise


def overwrite(store: BlobStore, key: str, content: bytes) -> None:
    """Damage what is stored, as a bad disk would."""
    store.delete(key)
    store.put_if_absent(key, content)


def record(vnode: str, content: bytes) -> Record:
    return Record(vnode, hashlib.sha256(content).hexdigest(), len(content))


def manifest(version: int, parent: str | None, *records: Record, run: str = "run", generation: int = 1) -> RunManifest:
    return RunManifest(
        run=run,
        version=version,
        generation=generation,
        cursor=version,
        profile="samebits-1",
        parent=parent,
        vnodes=records,
    )
