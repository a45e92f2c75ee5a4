"""What comes from outside for a VNode, judged by its spec: names, dtypes, shapes and numbers of rows.

The front asks this once, before anything is kept for a request or enters the worker. The worker relies on it, and adds
what only it can judge: values (values.py). Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pnode.errors import BadRequest
from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import allow_list, sizes
from pnode.vnode.bounds import shown
from pnode.vnode.tensors import FLOATS, ITEM_BYTES, TensorBytes, dtype_name

# A loss reads one class for each row.
_TARGET_BYTES = ITEM_BYTES[tensor_pb2.DTYPE_I64]
# Of tensors by name: their dtype, and the shape of one row.
_Wanted = dict[str, tuple[int, tuple[int, ...]]]


class Requests:
    """The judge of one VNode's requests. Its spec must be valid."""

    def __init__(self, spec: spec_pb2.VNodeSpec) -> None:
        self._inputs = _wanted(spec.inputs)
        self._targets = _wanted(spec.targets) if spec.HasField("loss") else None
        values = allow_list.value_shapes(spec)
        outputs = [] if spec.HasField("loss") else [values[name] for name in spec.outputs]
        self._gradients = {name: (dtype, shape) for name, dtype, shape in outputs if dtype in FLOATS}
        self._max_rows = int(spec.limits.max_rows)
        self._training_rows = sizes.training_rows(spec)

    def forward(self, inputs: Sequence[TensorBytes]) -> int:
        """The rows of a Forward. Raises BadRequest unless its inputs are those of the spec."""
        rows = _rows(self._inputs, inputs, "input")
        if len(rows) != 1:
            raise BadRequest(f"the inputs have different numbers of rows: {sorted(rows)}")
        (number,) = rows
        if not 1 <= number <= self._max_rows:
            raise BadRequest(f"expected 1 to {self._max_rows} rows (limits.max_rows), got {number}")
        return number

    def microbatch(self, inputs: Sequence[TensorBytes], targets: Sequence[TensorBytes]) -> int:
        """The rows of a Train. Raises BadRequest unless its inputs and targets are those of the spec.

        Targets that are passed on are named by the spec of the VNode that owns the loss: here only their size is known.
        """
        rows = _rows(self._inputs, inputs, "input")
        if self._targets is not None:
            rows |= _rows(self._targets, targets, "target")
        if len(rows) != 1:
            raise BadRequest(f"inputs and targets have different numbers of rows: {sorted(rows)}")
        (number,) = rows
        if not 1 <= number <= self._training_rows:
            raise BadRequest(f"expected 1 to {self._training_rows} rows of a microbatch, got {number}")
        num_bytes = sum(len(target.payload) for target in targets)
        if num_bytes > number * _TARGET_BYTES:
            raise BadRequest(f"{num_bytes} bytes of targets for {number} rows: a loss reads one class for each")
        return number

    def targets(self, given: Sequence[TensorBytes], rows: int) -> None:
        """Raises BadRequest unless these are the targets of the spec, which owns the loss, of so many rows."""
        found = _rows(self._targets or {}, given, "target")
        if found - {rows}:
            raise BadRequest(f"targets have {sorted(found)} rows, their inputs have {rows}")

    def gradients(self, given: Sequence[TensorBytes], rows: int) -> None:
        """Raises BadRequest unless downstream gave a gradient for each float output of a microbatch, of its shape."""
        found = _rows(self._gradients, given, "output gradient")
        if found - {rows}:
            raise BadRequest(f"output gradients have {sorted(found)} rows, their microbatch has {rows}")


def _wanted(tensors: Iterable[tensor_pb2.TensorSpec]) -> _Wanted:
    return {tensor.name: (int(tensor.dtype), tuple(tensor.shape)) for tensor in tensors}


def _rows(wanted: _Wanted, given: Sequence[TensorBytes], word: str) -> set[int]:
    """The numbers of rows that they have."""
    found = {tensor.name: tensor for tensor in given}
    if found.keys() != wanted.keys():
        for name in sorted(wanted.keys() - found.keys()):
            raise BadRequest(f"{word} {name!r} is missing")
        for name in sorted(found.keys() - wanted.keys()):
            raise BadRequest(f"{word} {shown(name)} is not one of {list(wanted)}")
    return {_num_rows(found[name], dtype, row, word) for name, (dtype, row) in wanted.items()}


def _num_rows(given: TensorBytes, dtype: int, row: tuple[int, ...], word: str) -> int:
    if given.dtype != dtype:
        raise BadRequest(f"{word} {given.name!r}: expected {dtype_name(dtype)}, got {dtype_name(given.dtype)}")
    if not given.shape or given.shape[1:] != row:
        raise BadRequest(f"{word} {given.name!r}: expected [rows, *{list(row)}], got {list(given.shape)}")
    return given.shape[0]
