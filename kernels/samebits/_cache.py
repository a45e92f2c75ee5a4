"""The on-disk store of compiled kernels: owner-only, one directory per exact set of sources, versions and processor.

What lies here is machine code that is executed after loading, so a directory that anyone else owns or may write is
refused. The directory's name is a hash of everything that shapes the code; stale code has no way back.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import platform
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import serialize
from numba.core.caching import CompileResultCacheImpl
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys

_dumps: Any = serialize.dumps
logger = logging.getLogger(__name__)
SOURCES = Path(__file__).parent
BESIDE = ("reference", "selftest")
DIGEST_BYTES = 32


def target() -> tuple[str, str, str]:
    """Triple, processor name and features that Numba compiles for (NUMBA_CPU_NAME and NUMBA_CPU_FEATURES included)."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return str(triple), str(name), str(features)


def refuse_without_fma(triple: str, features: str) -> None:
    """Raise RuntimeError for an x86 without the instruction, unless $SAMEBITS_SLOW_FMA is 1.

    A library's function in its place gives the same bits, and the canary checks that it rounds once, but it is
    about 100 times slower: whoever wants the proof or has the time must say so.
    """
    if not triple.startswith(("x86_64", "i686", "amd64")) or {"+fma", "+avx2"} <= set(features.split(",")):
        return
    if os.environ.get("SAMEBITS_SLOW_FMA") != "1":
        raise RuntimeError(
            "samebits: this processor has no fused multiply-add; x86-64 needs AVX2 and FMA "
            "(SAMEBITS_SLOW_FMA=1 computes without, about 100 times slower)"
        )


def source_files() -> list[Path]:
    """Every source that can shape compiled code; the plain reference loops and the self-test cannot."""
    return sorted(path for path in SOURCES.rglob("*.py") if path.relative_to(SOURCES).parts[0] not in BESIDE)


def fingerprint(files: Iterable[Path] | None = None) -> str:
    """Hash of the kernel sources, the compilers' versions, the processor, and the compiler's own settings."""
    hasher = hashlib.sha256()
    settings = sorted(item for item in os.environ.items() if item[0].startswith(("NUMBA_", "SAMEBITS_TILE")))
    versions = (numba.__version__, llvmlite.__version__, platform.python_version())
    hasher.update(repr((versions, target(), settings)).encode())
    for path in source_files() if files is None else files:
        content = path.read_bytes()
        hasher.update(f"\n{path.name} {len(content)}\n".encode())
        hasher.update(content)
    return hasher.hexdigest()[:32]


def cache_root() -> Path:
    """Where the cache lies: $SAMEBITS_CACHE_DIR, else $XDG_CACHE_HOME/samebits, else ~/.cache/samebits."""
    own = os.environ.get("SAMEBITS_CACHE_DIR")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "samebits"


def refuse_if_open(directory: Path, status: os.stat_result | None = None) -> None:
    """Raise RuntimeError where somebody else could have placed code: another owner, or write access for others.

    The superuser's directories are accepted, so that an image can carry a cache that its user cannot change.
    """
    status = status or directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise RuntimeError(f"samebits: the kernel cache {directory} is not a plain directory")
    if status.st_uid not in (os.geteuid(), 0):
        raise RuntimeError(f"samebits: the kernel cache {directory} belongs to user {status.st_uid}, not to this user")
    if status.st_mode & 0o022:
        raise RuntimeError(
            f"samebits: the kernel cache {directory} can be written by others (mode {stat.S_IMODE(status.st_mode):o}); "
            f"remove it, or run: chmod 700 {directory}"
        )


def refuse_if_replaceable(directory: Path) -> None:
    """Raise RuntimeError where a parent lets anyone move our directory away: world-writable and not sticky."""
    for parent in directory.absolute().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise RuntimeError(f"samebits: the kernel cache lies below {parent}, which everyone can write")


@functools.cache
def directory() -> Path | None:
    """The checked cache directory of this fingerprint, made if needed; None where there can be none."""
    root = cache_root()
    leaf = root / _IMPORTED
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        leaf.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        if not leaf.is_dir():
            logger.warning("samebits compiles without a cache: %s cannot be made: %s", leaf, error.strerror)
            return None
    for place in (root, leaf):
        refuse_if_open(place)
    refuse_if_replaceable(root)
    return leaf


class KernelCache:
    """What a Numba dispatcher asks of its cache, for one kernel with one signature: one checksummed file."""

    def __init__(self, name: str, function: Any) -> None:
        self._name = name
        self._codec: Any = CompileResultCacheImpl.__new__(CompileResultCacheImpl)
        self._function = function

    @property
    def cache_path(self) -> str:
        """The directory, as Numba's statistics show it."""
        return str(directory())

    @property
    def kept(self) -> bool:
        """Whether there is a record, good or not."""
        place = directory()
        return place is not None and (place / f"{self._name}.kernel").exists()

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled kernel, or None if it is not there or damaged."""
        place = directory()
        if place is None:
            return None
        # What compiled code links to. Numba's own cache refreshes the whole context, which takes half of a warm start
        # and serves only the compilation of others; those do it for themselves.
        rtsys.initialize(target_context)
        try:
            record = (place / f"{self._name}.kernel").read_bytes()
        except OSError:
            return None
        checksum, payload = record[:DIGEST_BYTES], record[DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != checksum:
            logger.warning("samebits compiles %s again: its cached code is damaged", self._name)
            return None
        # The directory has been refused above if anyone but this user or root could have written the record.
        return self._codec.rebuild(target_context, pickle.loads(payload))  # noqa: S301

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Write the compiled kernel beside its place and move it there, so that a reader never sees half of it."""
        place = directory()
        if place is None or fingerprint() != place.name:  # the sources changed after they were imported
            return
        payload: bytes = _dumps(self._codec.reduce(compiled))
        try:
            handle, draft = tempfile.mkstemp(dir=place, prefix=f"{self._name}.")
            with os.fdopen(handle, "wb") as stream:
                stream.write(hashlib.sha256(payload).digest() + payload)
            os.replace(draft, place / f"{self._name}.kernel")
        except OSError as error:
            logger.warning("samebits does not keep %s compiled: %s", self._name, error.strerror)

    def enable(self) -> None:
        """Part of Numba's interface; this cache is always on."""

    def disable(self) -> None:
        """Part of Numba's interface; this cache is always on."""

    def flush(self) -> None:
        """Part of Numba's interface; records are replaced, never edited."""


_IMPORTED = fingerprint()  # now, not at the first compilation: sources may change under a running process
