"""Where VNode states come from and go to: content-addressed blobs in the store, as tensors of bytes for a worker."""

from __future__ import annotations

from collections.abc import Sequence

from pnode.errors import BadRequest, BlobCorrupt
from pnode.node.errands import Errands
from pnode.node.quota import Quota
from pnode.storage.blob import BlobStore
from pnode.storage.content import content_sha256, get_content, put_named
from pnode.transport.deadline import Deadline
from pnode.v1 import tensor_pb2, vnode_pb2
from pnode.vnode.bounds import shown
from pnode.vnode.tensors import TensorBytes


def check_record(vnode: str, record: vnode_pb2.StateRecord) -> None:
    """Raises BadRequest for what cannot be a record of this VNode's state. Without a digest it is the initial one."""
    if record.vnode not in ("", vnode):
        raise BadRequest(f"the record is of VNode {shown(record.vnode)}, expected {vnode!r}")
    if not record.sha256 and (record.version or record.size_bytes):
        raise BadRequest(f"a record of version {record.version} and {record.size_bytes} bytes has no digest")


class StateShelf:
    """Fetches and uploads state records. The bytes are checked by digest here and parsed only in the sandbox."""

    def __init__(self, store: BlobStore, quota: Quota) -> None:
        self._store = store
        self._quota = quota
        self._errands = Errands()

    def fetch(self, record: vnode_pb2.StateRecord, max_bytes: int, deadline: Deadline) -> Sequence[TensorBytes]:
        """The state as one tensor of bytes, or nothing for the initial state.

        Raises BlobMissing, BlobCorrupt, StoreUnavailable, or DeadlineExceeded where it does not come in time.
        """
        if not record.sha256:
            return ()
        if record.size_bytes > max_bytes:
            raise BlobCorrupt(f"a state of {record.size_bytes} bytes cannot fit this spec ({max_bytes} at most)")

        def get() -> bytes:
            return get_content(self._store, record.sha256, max_bytes=max_bytes)

        content = self._errands.run("fetching a state", ("get", record.sha256, max_bytes), get, deadline, lasting=True)
        return (TensorBytes("state", tensor_pb2.DTYPE_U8, (len(content),), content),)

    def upload(self, vnode: str, version: int, state: bytes | memoryview, deadline: Deadline) -> vnode_pb2.StateRecord:
        """Store a state under its SHA-256 and name it. It counts as this node's as soon as it may stand there.

        Raises StoreFull, StoreUnavailable, or DeadlineExceeded where the store takes too long.
        """
        content = bytes(state)
        sha256 = content_sha256(content)

        def put() -> None:
            with self._quota.room(sha256, len(content)):
                put_named(self._store, sha256, content)

        self._errands.run("storing a state", ("put", sha256), put, deadline)
        return vnode_pb2.StateRecord(vnode=vnode, version=version, sha256=sha256, size_bytes=len(content))
