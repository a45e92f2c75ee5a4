"""The digest that tells a retried Train from another request under the same key."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable
from typing import Protocol

import xxhash

from pnode.transport.api import TrainRequest
from pnode.transport.codec import Buffer
from pnode.v1 import tensor_pb2


class _Hash(Protocol):
    def update(self, content: Buffer, /) -> None: ...


def request_digest(request: TrainRequest) -> bytes:
    """16 bytes over all that a Train computes from: tensors, batch_rows, num_microbatches, want_input_gradients.

    The fences, step and microbatch are left out: they are the key under which the digest is kept. It never leaves the
    process, so the hash may change and its seed is the process's own: XXH3 takes a tenth of SHA-256's time, and who
    forged a collision, without knowing the seed, would get the answer to a call of his own.
    """
    digest, head = xxhash.xxh3_128(seed=_SEED), request.head
    digest.update(struct.pack("<IQ?", head.num_microbatches, head.batch_rows, head.want_input_gradients))
    _add_metas(digest, head.inputs)
    _add_metas(digest, head.targets)
    digest.update(struct.pack("<Q", len(request.payloads)))
    for payload in request.payloads:
        digest.update(struct.pack("<Q", len(payload)))
        digest.update(payload)
    return digest.digest()


_SEED = secrets.randbits(64)


def _add_metas(digest: _Hash, metas: Iterable[tensor_pb2.TensorMeta]) -> None:
    """Every length comes before what it measures, so that no two lists have the same bytes."""
    metas = list(metas)
    digest.update(struct.pack("<Q", len(metas)))
    for meta in metas:
        name = meta.name.encode()
        digest.update(struct.pack("<QiQ", len(name), meta.dtype, len(meta.shape)))
        digest.update(name)
        digest.update(struct.pack(f"<{len(meta.shape)}q", *meta.shape))
