"""A microbatch's bytes judged by the spec, before anything is kept for it and before anyone knows torch.

The stage checks what it is given once more, and what only it can: the classes in the targets.
"""

from __future__ import annotations

from collections.abc import Sequence

from pnode.errors import BadRequest
from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import sizes
from pnode.vnode.bounds import shown
from pnode.vnode.tensors import ITEM_BYTES, TensorBytes, dtype_name

# A loss reads one class for each row.
_TARGET_BYTES = ITEM_BYTES[tensor_pb2.DTYPE_I64]


def check(spec: spec_pb2.VNodeSpec, inputs: Sequence[TensorBytes], targets: Sequence[TensorBytes]) -> None:
    """Raises BadRequest unless inputs and targets are those of the spec, all of as many rows, and not too many.

    Targets that are passed on are named by the spec of the VNode that owns the loss: here only their size is known.
    """
    rows = _rows(spec.inputs, inputs, "input")
    if spec.HasField("loss"):
        rows |= _rows(spec.targets, targets, "target")
    if len(rows) != 1:
        raise BadRequest(f"inputs and targets have different numbers of rows: {sorted(rows)}")
    (number,) = rows
    most = sizes.training_rows(spec)
    if not 1 <= number <= most:
        raise BadRequest(f"expected 1 to {most} rows of a microbatch, got {number}")
    num_bytes = sum(len(target.payload) for target in targets)
    if num_bytes > number * _TARGET_BYTES:
        raise BadRequest(f"{num_bytes} bytes of targets for {number} rows: a loss reads one class for each")


def _rows(wanted: Sequence[tensor_pb2.TensorSpec], given: Sequence[TensorBytes], word: str) -> set[int]:
    """The numbers of rows that they have."""
    found = {tensor.name: tensor for tensor in given}
    specs = {tensor.name: tensor for tensor in wanted}
    for name in sorted(specs.keys() - found.keys()):
        raise BadRequest(f"{word} {name!r} is missing")
    for name in sorted(found.keys() - specs.keys()):
        raise BadRequest(f"{word} {shown(name)} is not one of {list(specs)}")
    return {_num_rows(found[name], tensor, word) for name, tensor in specs.items()}


def _num_rows(given: TensorBytes, wanted: tensor_pb2.TensorSpec, word: str) -> int:
    if given.dtype != wanted.dtype:
        raise BadRequest(f"{word} {given.name!r}: expected {dtype_name(wanted.dtype)}, got {dtype_name(given.dtype)}")
    if not given.shape or given.shape[1:] != tuple(wanted.shape):
        raise BadRequest(f"{word} {given.name!r}: expected [rows, *{list(wanted.shape)}], got {list(given.shape)}")
    return given.shape[0]
