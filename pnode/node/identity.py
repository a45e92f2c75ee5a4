"""Who this node is: a UUID that survives restarts, kept in the data directory, owner-only."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from pnode.errors import ConfigError


def node_uuid(data_dir: Path, configured: str | None) -> str:
    """The configured UUID, else the one kept in `data_dir/uuid`, made on the first start.

    Raises ConfigError where the directory cannot be used or a UUID does not parse.
    """
    if configured is not None:
        return _parse(configured, "node.uuid")
    path = data_dir / "uuid"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _parse(path.read_text(encoding="ascii").strip(), str(path)) if path.exists() else _make(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"node.data_dir: {path} cannot be used: {error}") from error


def _parse(text: str, where: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ConfigError(f"{where}: {text!r} is not a UUID") from None


def _make(path: Path) -> str:
    made = str(uuid.uuid4())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(made + "\n")
    return made
