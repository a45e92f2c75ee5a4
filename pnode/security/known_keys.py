"""Which key a UUID belongs to: what does not follow from the key itself is bound to the first key that brings it."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

from pnode.errors import Busy, ConfigError, PermissionDenied
from pnode.security.identity import OWN_VERSION, uuid_of
from pnode.security.private_files import load_or_make

# Strangers may join an open network under ever new UUIDs; they shall not fill its disk.
_MAX_KNOWN = 65_536


class KnownKeys:
    """Bindings in a file, one a line, kept over restarts; without a file, for the life of the process. Thread-safe."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        lines = [] if path is None else load_or_make(path, bytes, max_bytes=8 << 20).decode("ascii").splitlines()
        self._keys: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            name, _, key = line.partition(" ")
            if len(name) != 36 or len(key) != 64:
                raise ConfigError(f"node.data_dir: line {number} of {path} is no UUID with its key")
            self._keys[name] = key

    def check(self, name: str, public: bytes) -> None:
        """Accept a UUID with its key, and bind the two where that is new.

        Raises PermissionDenied for another key than the UUID's own, Busy where no more can be bound.
        """
        if uuid.UUID(name).version == OWN_VERSION:
            if name != uuid_of(public):
                raise PermissionDenied(f"{name} is made from a key, and from another one than the joiner's")
            return
        with self._lock:
            known = self._keys.get(name)
            if known is None:
                self._bind(name, public.hex())
            elif known != public.hex():
                raise PermissionDenied(
                    f"{name} belongs to another key; a UUID is bound to the first that joins with it"
                )

    def _bind(self, name: str, key: str) -> None:
        if len(self._keys) >= _MAX_KNOWN:
            raise Busy(f"{_MAX_KNOWN} UUIDs are bound to keys, the most allowed; join without node.uuid")
        if self._path is not None:
            with self._path.open("a", encoding="ascii") as file:
                file.write(f"{name} {key}\n")
        self._keys[name] = key
