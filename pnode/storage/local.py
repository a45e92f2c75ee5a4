"""A blob store in a local directory: atomic, durable, and safe between processes.

A blob is written beside, synced, and linked or renamed into place, so that a reader sees all of it or none. Links fail
where a name is taken, which is `put_if_absent`; what replaces or removes takes a lock, which is `put_if_match`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pnode.errors import BadRequest, BlobMissing, ConfigError, PreconditionFailed, StoreFull, StoreUnavailable, TooLarge
from pnode.storage.blob import Blob, check_key, check_prefix

_NUM_LOCKS = 64
_LOCK_POLL_S = 0.005
# What a killed writer left behind is removed when a store is opened, once nobody can be writing it any more.
_STALE_S = 3600.0


class LocalStore:
    """Blobs as files under `root`, owner-only. `lock_timeout_s` bounds the wait for another writer of the same key.

    A put that would leave less than `keep_free_bytes` of the disk to its owner is refused with StoreFull.
    Raises ConfigError where the directory cannot be made or written.
    """

    def __init__(self, root: str | Path, *, lock_timeout_s: float = 10.0, keep_free_bytes: int = 0) -> None:
        self._root = Path(root).absolute()
        self._staging = self._root / ".staging"
        self._locks = self._root / ".locks"
        self._lock_timeout_s = lock_timeout_s
        self._keep_free_bytes = keep_free_bytes
        try:
            for folder in (self._root, self._staging, self._locks):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_stale()
            self._stage(b"").unlink()
        except OSError as error:
            raise ConfigError(f"the store's directory {self._root} cannot be used: {error.strerror}") from error

    def __repr__(self) -> str:
        return f"LocalStore({str(self._root)!r})"

    def get(self, key: str, *, max_bytes: int) -> Blob:
        """See BlobStore."""
        with _refusals(key):
            content = self._read(self._path(key), max_bytes)
        if content is None:
            raise BlobMissing(f"no blob under {key}")
        return Blob(content, _etag(content))

    def put_if_absent(self, key: str, content: bytes) -> str:
        """See BlobStore."""
        path = self._path(key)
        with _refusals(key):
            # Linking would tell as well, but only after all bytes were written.
            if path.exists():
                raise _taken(path, key)
            staged = self._stage(content)
            try:
                _make_folder(path.parent)
                os.link(staged, path)
            except FileExistsError:
                raise _taken(path, key) from None
            finally:
                staged.unlink()
            _sync(path.parent)
        return _etag(content)

    def put_if_match(self, key: str, content: bytes, etag: str) -> str:
        """See BlobStore."""
        path = self._path(key)
        with _refusals(key):
            staged = self._stage(content)
            try:
                with self._locked(key):
                    if _etag_of(path) != etag:
                        raise PreconditionFailed(f"{key} holds something else by now")
                    staged.rename(path)
            finally:
                staged.unlink(missing_ok=True)
            _sync(path.parent)
        return _etag(content)

    def delete(self, key: str) -> None:
        """See BlobStore."""
        path = self._path(key)
        with _refusals(key), self._locked(key), suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            path.unlink()
            _sync(path.parent)

    def keys(self, prefix: str) -> Iterator[str]:
        """See BlobStore."""
        folder = self._root / check_prefix(prefix).rpartition("/")[0]
        with _refusals(prefix):
            found = [path.relative_to(self._root).as_posix() for path in _files(folder)]
        return (key for key in found if key.startswith(prefix) and not key.startswith("."))

    def close(self) -> None:
        """See BlobStore."""

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _read(self, path: Path, max_bytes: int) -> bytes | None:
        try:
            with path.open("rb") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                content = file.read(max_bytes + 1) if size_bytes <= max_bytes else None
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        if content is None or len(content) > max_bytes:
            raise TooLarge(f"a blob of {size_bytes} bytes is over the {max_bytes} that are asked for")
        return content

    def _stage(self, content: bytes) -> Path:
        if content and shutil.disk_usage(self._staging).free - len(content) < self._keep_free_bytes:
            raise OSError(errno.ENOSPC, f"less than {self._keep_free_bytes} bytes of the disk would stay free")
        descriptor, name = tempfile.mkstemp(dir=self._staging)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # The disk may be full: what was written of it must not fill it further.
            os.unlink(name)
            raise
        return Path(name)

    def _remove_stale(self) -> None:
        for path in self._staging.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the key's lock. A fixed number of lock files, for one per key would never go away."""
        number = hashlib.sha256(key.encode()).digest()[0] % _NUM_LOCKS
        with (self._locks / str(number)).open("ab") as file:
            self._wait_for(file.fileno(), key)
            yield

    def _wait_for(self, descriptor: int, key: str) -> None:
        # flock has no deadline of its own, and a suspended process may hold the lock for ever.
        ends = time.monotonic() + self._lock_timeout_s
        pause = threading.Event()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= ends:
                    raise StoreUnavailable(f"another process holds the lock of {key}") from None
                pause.wait(_LOCK_POLL_S)
            else:
                return


@contextmanager
def _refusals(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = StoreFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreUnavailable
        raise kind(f"the store's directory failed for {key or 'all keys'}: {error.strerror}") from error


def _taken(path: Path, key: str) -> PreconditionFailed | BadRequest:
    if path.is_dir():
        return BadRequest(f"{key} is a folder of other keys")
    return PreconditionFailed(f"{key} holds something already")


def _etag(content: bytes) -> str:
    # Of the content, not of the file: inode numbers and timestamps come again within one tick of the clock.
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _etag_of(path: Path) -> str | None:
    try:
        return _etag(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they outlive a crash."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise BadRequest(f"{folder.name} is a blob, so it cannot be a folder of keys") from None
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        # A listing that silently lacks keys would have their blobs collected as garbage.
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for parent, _, names in os.walk(folder, onerror=failed):
        yield from (Path(parent, name) for name in names)
