"""Private keys on disk: made once, readable by their owner alone, refused when anyone else could have read them."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from pnode.errors import ConfigError

# Larger than any key or certificate of ours: what is larger was put there by somebody else.
_MAX_BYTES = 64 << 10


def load_or_make(
    path: Path, make: Callable[[], bytes], *, max_bytes: int = _MAX_BYTES, setting: str = "node.data_dir"
) -> bytes:
    """What is in the file; where there is none, what `make` returns, which is then kept there with mode 0600.

    Two processes that start at once get the same bytes. Raises ConfigError, naming the setting that the path came
    from, where the file cannot be used.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.lexists(path):
            _keep(path, make())
        return _read(path, max_bytes, setting)
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be used: {error}") from error


def _keep(path: Path, content: bytes) -> None:
    # Whole or not at all: a link of a finished file, which fails where another process was faster.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(unfinished, path)
        except FileExistsError:
            return
    finally:
        unfinished.unlink()


def _read(path: Path, max_bytes: int, setting: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _check_private(path, os.fstat(descriptor), setting)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        os.close(descriptor)


def _check_private(path: Path, found: os.stat_result, setting: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{setting}: {path} is not a plain file")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"{setting}: {path} belongs to user {found.st_uid}, not to this one")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise ConfigError(
            f"{setting}: {path} has mode {mode:04o}, so others may have read the key; "
            "remove it for a new one, or chmod 600 it where nobody else was on this machine"
        )
