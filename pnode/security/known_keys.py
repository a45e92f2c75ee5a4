"""Which key a UUID belongs to: what does not follow from the key itself is bound to the first key that brings it."""

from __future__ import annotations

import logging
import os
import re
import threading
import uuid
from pathlib import Path

from pnode.errors import Busy, ConfigError, PermissionDenied, Unavailable
from pnode.security.identity import OWN_VERSION, uuid_of
from pnode.security.private_files import load_or_make

log = logging.getLogger(__name__)

# Strangers may join an open network under ever new UUIDs; they shall not fill its disk.
_MAX_KNOWN = 65_536
_LINE = re.compile(r"([0-9a-f-]{36}) ([0-9a-f]{64})", re.ASCII)
_MAX_BYTES = _MAX_KNOWN * (36 + 1 + 64 + 1)


class KnownKeys:
    """Bindings in a file, one a line, kept over restarts; without a file, for the life of the process. Thread-safe."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._keys = {} if path is None else _read(path)

    def check(self, name: str, public: bytes) -> None:
        """Judge a UUID with its key. Raises PermissionDenied for another key than the UUID's own."""
        if uuid.UUID(name).version == OWN_VERSION:
            if name != uuid_of(public):
                raise PermissionDenied(f"{name} is made from a key, and from another one than the joiner's")
            return
        with self._lock:
            self._check_known(name, public)

    def bind(self, name: str, public: bytes) -> None:
        """Accept a UUID with its key, and bind the two where that is new.

        Raises PermissionDenied as `check`, Busy where no more can be bound, Unavailable where that could not be kept.
        """
        self.check(name, public)
        if uuid.UUID(name).version == OWN_VERSION:
            return
        with self._lock:
            # Another joiner may have been faster.
            self._check_known(name, public)
            if name not in self._keys:
                self._keep(name, public.hex())

    def _check_known(self, name: str, public: bytes) -> None:
        if self._keys.get(name, public.hex()) != public.hex():
            raise PermissionDenied(f"{name} belongs to another key; a UUID is bound to the first that joins with it")

    def _keep(self, name: str, key: str) -> None:
        if len(self._keys) >= _MAX_KNOWN:
            raise Busy(f"{_MAX_KNOWN} UUIDs are bound to keys, the most allowed; join without node.uuid")
        if self._path is not None:
            _append(self._path, f"{name} {key}\n".encode())
        self._keys[name] = key


def _read(path: Path) -> dict[str, str]:
    content = load_or_make(path, bytes, max_bytes=_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"node.data_dir: {path} is larger than {_MAX_KNOWN} UUIDs with their keys")
    *lines, unfinished = content.split(b"\n")
    if unfinished:
        # Nobody was told that this join succeeded: the process, or its machine, ended while it wrote the line.
        log.warning("%s ends within a line, which is removed: a join was under way when its writer ended", path)
        os.truncate(path, len(content) - len(unfinished))
    keys = {}
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line.decode("ascii", "replace"))
        if found is None:
            raise ConfigError(f"node.data_dir: line {number} of {path} is no UUID with its key")
        keys[found[1]] = found[2]
    return keys


def _append(path: Path, line: bytes) -> None:
    """Add a line for good, or nothing."""
    try:
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError("the disk took only a part of a line")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise Unavailable(f"the orchestrator could not keep whose a UUID is: {error.strerror or error}") from error
