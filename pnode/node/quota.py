"""The disk of the store: how many bytes of states this node may keep there, whatever the store is, and what it keeps.

What this node uploaded is written down in its own folder, for a bucket that many share tells nobody's share. A state
counts until it is gone from the store: retention removes it once newer checkpoints were committed.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pnode.errors import StoreFull
from pnode.storage.blob import BlobStore
from pnode.storage.content import content_key

log = logging.getLogger(__name__)

# With so many states written down, those that are gone are struck out even where there is room.
_MANY = 256


class Quota:
    """States by SHA-256, with their sizes. Thread-safe; `most_bytes` (None: no limit) may be set at any time."""

    def __init__(self, store: BlobStore, file: Path, most_bytes: int | None) -> None:
        self.most_bytes = most_bytes
        self._store = store
        self._file = file
        self._lock = threading.Lock()
        self._uploading: Counter[str] = Counter()
        self._kept = _read(file)
        self._many = max(_MANY, 2 * len(self._kept))

    @property
    def used_bytes(self) -> int:
        """Of states that stand in the store as far as we know."""
        return sum(self._kept.values())

    @contextmanager
    def room(self, sha256: str, num: int) -> Iterator[None]:
        """Hold room for a state while it is uploaded; it counts from then on. Raises StoreFull, StoreUnavailable."""
        with self._lock:
            self._admit(sha256, num)
            self._uploading[sha256] += 1
        try:
            yield
        finally:
            # One that was not stored after all is struck out with those that are gone.
            with self._lock:
                self._uploading[sha256] -= 1

    def _admit(self, sha256: str, num: int) -> None:
        if sha256 in self._kept:
            return
        if self._is_over(num) or len(self._kept) >= self._many:
            self._strike_out()
        if self._is_over(num):
            why = f"{self.used_bytes} of the {self.most_bytes} that limits.disk grants are taken"
            raise StoreFull(f"a state of {num} bytes has no room in the store: {why}, by {len(self._kept)} states")
        self._kept[sha256] = num
        # Before it is uploaded: what is written down and not there is found out, the other way round it never is.
        self._write()

    def _is_over(self, num: int) -> bool:
        return self.most_bytes is not None and self.used_bytes + num > self.most_bytes

    def _strike_out(self) -> None:
        """Forget those that are gone from the store."""
        gone = [each for each in self._kept if not self._uploading[each] and not self._stands(each)]
        for each in gone:
            del self._kept[each]
        self._uploading = +self._uploading
        self._many = max(_MANY, 2 * len(self._kept))

    def _stands(self, sha256: str) -> bool:
        key = content_key(sha256)
        return key in self._store.keys(key)

    def _write(self) -> None:
        beside = self._file.with_suffix(".new")
        try:
            beside.write_text(json.dumps(self._kept, indent=0), encoding="ascii")
            os.replace(beside, self._file)
        except OSError as error:
            raise StoreFull(f"what this node keeps in the store cannot be written down: {error.strerror}") from error


def _read(file: Path) -> dict[str, int]:
    """What was written down before; a damaged file counts for nothing, and says so."""
    try:
        content = json.loads(file.read_text(encoding="ascii"))
        return {content_key(name).rpartition("/")[2]: int(size) for name, size in content.items()}
    except FileNotFoundError:
        return {}
    except Exception as error:  # noqa: BLE001 - of whatever kind: a node must start with a damaged list, too
        log.warning("%s cannot be read, so what this node uploaded before is not counted: %s", file, error)
        return {}
