"""What a blob store is: named bytes, conditional puts, and nothing else. A local directory and S3 both are one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from pnode.errors import BadRequest

# A segment never begins with a dot: "." and ".." cannot be spelled, and a store keeps its own files under dots.
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}"
_KEY = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*", re.ASCII)
_PREFIX = re.compile(rf"({_SEGMENT}/)*({_SEGMENT})?", re.ASCII)
_MAX_KEY_CHARS = 512


class Blob(NamedTuple):
    """Bytes, and the tag of just these bytes for a later `put_if_match`."""

    content: bytes
    etag: str


class BlobStore(Protocol):
    """Named bytes. Safe to use from many threads and many processes.

    Every call may raise StoreUnavailable, after bounded retries, and BadRequest for a malformed key. A put that
    raised StoreUnavailable may have happened all the same: whoever retries reads back.
    """

    def get(self, key: str, *, max_bytes: int) -> Blob:
        """The bytes under `key`. Raises BlobMissing, or TooLarge before more than `max_bytes` are held."""

    def put_if_absent(self, key: str, content: bytes) -> str:
        """Store under a key that holds nothing; returns the etag. Raises PreconditionFailed if it holds something."""

    def put_if_match(self, key: str, content: bytes, etag: str) -> str:
        """Replace what `etag` names; returns the new etag. Raises PreconditionFailed if something else is there."""

    def delete(self, key: str) -> None:
        """Remove what is under `key`, if anything."""

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys that begin with `prefix`, in no order: not every S3 server sorts as AWS does."""

    def close(self) -> None:
        """Give back connections. May be called twice."""


def check_key(key: str) -> str:
    """The key itself. Raises BadRequest for whatever could mean another place than it says."""
    if len(key) > _MAX_KEY_CHARS or not _KEY.fullmatch(key):
        raise BadRequest(f"{key[:80]!r} is no key of a blob: segments of letters, digits and _.- joined by / are")
    return key


def check_prefix(prefix: str) -> str:
    """The prefix itself, "" for all keys. Raises BadRequest as `check_key` does."""
    if len(prefix) > _MAX_KEY_CHARS or not _PREFIX.fullmatch(prefix):
        raise BadRequest(f"{prefix[:80]!r} is no prefix of a blob's key")
    return prefix
