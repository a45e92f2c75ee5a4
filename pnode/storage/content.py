"""Blobs under their own SHA-256: equal bytes are one blob, and whatever was damaged is found out on the way in."""

from __future__ import annotations

import hashlib
import logging
import re

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

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)

BLOBS = "blobs/"


def content_key(sha256: str) -> str:
    """The key of a content-addressed blob. Raises BadRequest for what is no SHA-256 in lower-case hex."""
    if not _SHA256.fullmatch(sha256):
        raise BadRequest(f"{sha256[:80]!r} is no SHA-256")
    return f"{BLOBS}{sha256[:2]}/{sha256}"


def put_content(store: BlobStore, content: bytes) -> str:
    """Store bytes under their SHA-256 and return it. That they stand there already is success; damaged ones are mended.

    Raises StoreUnavailable.
    """
    sha256 = content_sha256(content)
    put_named(store, sha256, content)
    return sha256


def content_sha256(content: bytes) -> str:
    """The name of these bytes."""
    return hashlib.sha256(content).hexdigest()


def put_named(store: BlobStore, sha256: str, content: bytes) -> None:
    """As `put_content`, for bytes whose SHA-256 is known."""
    key = content_key(sha256)
    try:
        store.put_if_absent(key, content)
    except (PreconditionFailed, StoreUnavailable) as error:
        # Someone had the same bytes before, or our own put landed and only its answer was lost.
        if not _stands(store, key, content, error):
            _mend(store, key, content)


def get_content(store: BlobStore, sha256: str, *, max_bytes: int) -> bytes:
    """The bytes of this SHA-256, checked. Raises BlobMissing, BlobCorrupt, TooLarge, StoreUnavailable."""
    content = store.get(content_key(sha256), max_bytes=max_bytes).content
    if content_sha256(content) != sha256:
        raise BlobCorrupt(f"the blob {sha256} holds other bytes than its name says")
    return content


def _stands(store: BlobStore, key: str, content: bytes, error: PNodeError) -> bool:
    try:
        return store.get(key, max_bytes=len(content)).content == content
    except TooLarge:
        return False
    except BlobMissing:
        if isinstance(error, StoreUnavailable):
            raise error from None
        return False


def _mend(store: BlobStore, key: str, content: bytes) -> None:
    """Replace damaged bytes. Whoever mends at the same time puts the same, so losing that race is winning it."""
    log.warning("%s is damaged or gone; it is stored again", key)
    store.delete(key)
    try:
        store.put_if_absent(key, content)
    except PreconditionFailed:
        if store.get(key, max_bytes=len(content)).content != content:
            raise StoreUnavailable(f"{key} stays damaged") from None
