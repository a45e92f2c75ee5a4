"""What a stage is given: names, dtypes, shapes and ranges, checked against the spec before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pnode.errors import BadRequest
from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import sizes
from pnode.vnode.bounds import shown
from pnode.vnode.torch_tensors import DTYPES


def check_tensors(
    spec: spec_pb2.VNodeSpec,
    given: Mapping[str, Tensor],
    wanted: Iterable[tensor_pb2.TensorSpec],
    word: str,
    *,
    training: bool,
) -> int:
    """The number of rows that all of them have. Raises BadRequest unless they are as the spec wants them."""
    specs = list(wanted)
    _check_names(given, [tensor.name for tensor in specs], word)
    rows = {_check_tensor(given[tensor.name], tensor, word) for tensor in specs}
    if len(rows) != 1:
        raise BadRequest(f"the {word}s have different numbers of rows: {sorted(rows)}")
    (number,) = rows
    most = sizes.training_rows(spec) if training else spec.limits.max_rows
    if not 1 <= number <= most:
        limit = "microbatch_rows" if most < spec.limits.max_rows else "max_rows"
        raise BadRequest(f"expected 1 to {most} rows (limits.{limit}), got {number}")
    return number


def check_targets(spec: spec_pb2.VNodeSpec, targets: Mapping[str, Tensor], rows: int, num_classes: int) -> None:
    """Targets come to the owner of the loss alone, one class of those that the logits have for each row."""
    if not spec.HasField("loss"):
        _check_names(targets, [], "target")
        return
    if check_tensors(spec, targets, spec.targets, "target", training=True) != rows:
        raise BadRequest(f"expected targets for {rows} rows, as many as the inputs have")
    for name, target in targets.items():
        _check_classes(name, target, num_classes)


def _check_classes(name: str, target: Tensor, num_classes: int) -> None:
    """Raises BadRequest for a class outside 0 .. num_classes - 1."""
    wrong = (target < 0) | (target >= num_classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise BadRequest(f"target {name!r}: class {int(target[row])} of row {row} is outside 0 .. {num_classes - 1}")


def check_gradients(outputs: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """One gradient for each output, of its dtype and shape."""
    _check_names(given, list(outputs), "output gradient")
    for name, output in outputs.items():
        if given[name].dtype != output.dtype or given[name].shape != output.shape:
            raise BadRequest(
                f"output gradient {name!r}: expected {output.dtype} of {list(output.shape)}, "
                f"got {given[name].dtype} of {list(given[name].shape)}"
            )


def _check_names(given: Mapping[str, Tensor], wanted: list[str], word: str) -> None:
    for name in wanted:
        if name not in given:
            raise BadRequest(f"{word} {name!r} is missing")
    for name in given:
        if name not in wanted:
            raise BadRequest(f"{word} {shown(name)} is not one of {wanted}")


def _check_tensor(given: Tensor, wanted: tensor_pb2.TensorSpec, word: str) -> int:
    dtype: torch.dtype = DTYPES[wanted.dtype]
    if given.dtype != dtype:
        raise BadRequest(f"{word} {wanted.name!r}: expected {dtype}, got {given.dtype}")
    if given.dim() < 1 or tuple(given.shape[1:]) != tuple(wanted.shape):
        raise BadRequest(f"{word} {wanted.name!r}: expected [rows, *{list(wanted.shape)}], got {list(given.shape)}")
    return int(given.shape[0])
