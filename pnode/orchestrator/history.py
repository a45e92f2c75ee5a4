"""The run manifests that a run may be restored from, newest first, less those whose blobs turned out bad. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pnode.orchestrator.events import Stored
from pnode.v1 import vnode_pb2


class History:
    """What is committed of one run. `vnodes` are the ids of its VNodes in model order."""

    def __init__(self, vnodes: Sequence[str]) -> None:
        self._vnodes = tuple(vnodes)
        self._stored: tuple[Stored, ...] = ()
        self._bad: set[str] = set()

    @property
    def newest(self) -> Stored | None:
        """The newest committed manifest, good or bad."""
        return self._stored[0] if self._stored else None

    @property
    def base(self) -> Stored | None:
        """The newest manifest that may be restored from; None means the initial state."""
        return next((stored for stored in self._stored if self._is_good(stored)), None)

    @property
    def base_version(self) -> int:
        """The version that a restore leads to."""
        return self.base.manifest.version if self.base else 0

    def read(self, stored: Sequence[Stored]) -> None:
        """Adopt what the store holds."""
        self._stored = tuple(stored)

    def add(self, stored: Stored) -> None:
        """A commit went through."""
        self._stored = (stored, *(older for older in self._stored if older.sha256 != stored.sha256))

    def condemn(self) -> None:
        """A blob of the present base is corrupt or missing: from now on its parent is the base."""
        if self.base is not None:
            self._bad.add(self.base.sha256)

    def record(self, vnode: str) -> vnode_pb2.StateRecord:
        """What a VNode is to be restored from. An empty digest means the initial state."""
        records = state_records(self.base) if self.base else []
        return next((record for record in records if record.vnode == vnode), vnode_pb2.StateRecord(vnode=vnode))

    def _is_good(self, stored: Stored) -> bool:
        names = tuple(record.vnode for record in stored.manifest.vnodes)
        return stored.sha256 not in self._bad and names == self._vnodes


def state_records(stored: Stored) -> list[vnode_pb2.StateRecord]:
    """The records that a manifest names, in model order."""
    manifest = stored.manifest
    return [
        vnode_pb2.StateRecord(
            vnode=record.vnode, version=manifest.version, sha256=record.sha256, size_bytes=record.size_bytes
        )
        for record in manifest.vnodes
    ]
