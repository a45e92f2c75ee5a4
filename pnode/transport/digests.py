"""The digest that tells a retried Train from another request under the same key."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Protocol

from pnode.v1 import tensor_pb2, vnode_pb2


class _Hash(Protocol):
    def update(self, content: bytes, /) -> None: ...


def request_digest(request: vnode_pb2.TrainRequest) -> bytes:
    """32 bytes over all that a Train computes from: tensors, batch_rows, num_microbatches, want_input_gradients.

    The fence, step and microbatch are left out: they are the key under which the digest is kept. It never leaves
    the process, so the hash may change: SHA-256 was measured three times as fast as BLAKE2b where the processor
    has instructions for it (13 against 42 ms for 16 MiB).
    """
    digest = hashlib.sha256()
    digest.update(struct.pack("<IQ?", request.num_microbatches, request.batch_rows, request.want_input_gradients))
    _add_metas(digest, request.inputs)
    _add_metas(digest, request.targets)
    digest.update(struct.pack("<Q", len(request.payloads)))
    for payload in request.payloads:
        digest.update(struct.pack("<Q", len(payload)))
        digest.update(payload)
    return digest.digest()


def _add_metas(digest: _Hash, metas: Iterable[tensor_pb2.TensorMeta]) -> None:
    """Every length comes before what it measures, so that no two lists have the same bytes."""
    metas = list(metas)
    digest.update(struct.pack("<Q", len(metas)))
    for meta in metas:
        name = meta.name.encode()
        digest.update(struct.pack("<QiQ", len(name), meta.dtype, len(meta.shape)))
        digest.update(name)
        digest.update(struct.pack(f"<{len(meta.shape)}q", *meta.shape))
