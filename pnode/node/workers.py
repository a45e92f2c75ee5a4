"""What the front asks of a worker, whoever provides it: the sandbox, or a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from pnode.v1 import spec_pb2, vnode_pb2
from pnode.vnode.tensors import TensorBytes

T = TypeVar("T")


class Reply(Protocol):
    """What a worker answers."""

    @property
    def fields(self) -> dict[str, Any]: ...

    @property
    def tensors(self) -> Sequence[TensorBytes]: ...


class Worker(Protocol):
    """The part of the sandbox's WorkerProcess that a hosted VNode uses."""

    @property
    def used_bytes(self) -> int: ...

    def call(
        self, command: str, fields: dict[str, Any], tensors: Sequence[TensorBytes], *, deadline_s: float | None
    ) -> Reply: ...

    def exchange(
        self,
        command: str,
        fields: dict[str, Any],
        tensors: Sequence[TensorBytes],
        read: Callable[[Reply], T],
        *,
        deadline_s: float | None,
    ) -> T: ...

    def kill(self, reason: str) -> None: ...

    def close(self) -> None: ...


# Starts a worker for a spec; the callback comes once, with a reason word and a sentence, when it has died.
Fork = Callable[[spec_pb2.VNodeSpec, Callable[[str, str], None]], Worker]
# Told of a VNode that was lost: its fence, a reason word and a sentence.
OnLost = Callable[[vnode_pb2.Fence, str, str], None]
