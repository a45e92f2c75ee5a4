"""Asks a store at start whether it can be trusted with the commit point."""

from __future__ import annotations

import uuid
from contextlib import suppress

from pnode.errors import ConfigError, PreconditionFailed
from pnode.storage.blob import BlobStore


def probe_conditional_puts(store: BlobStore) -> None:
    """Put, collide, replace, collide. Raises ConfigError for a store that lets the second writer win.

    Some stores accept the conditions and ignore them: two orchestrators would then both commit. Raises
    StoreUnavailable where the store does not answer or refuses a plain put.
    """
    key = f"probe/{uuid.uuid4().hex}"
    first = store.put_if_absent(key, b"first")
    try:
        with suppress(PreconditionFailed):
            store.put_if_absent(key, b"second")
            raise ConfigError(f"{store!r} ignores If-None-Match, so that no checkpoint would be safe in it")
        store.put_if_match(key, b"third", first)
        with suppress(PreconditionFailed):
            store.put_if_match(key, b"fourth", first)
            raise ConfigError(f"{store!r} ignores If-Match, so that no checkpoint would be safe in it")
        if store.get(key, max_bytes=16).content != b"third":
            raise ConfigError(f"{store!r} stores what it refuses, so that no checkpoint would be safe in it")
    finally:
        store.delete(key)
