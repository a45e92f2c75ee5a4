"""What only the worker can judge of a request: the values in its tensors. The front has judged all else."""

from __future__ import annotations

from torch import Tensor

from pnode.errors import BadRequest


def check_classes(name: str, target: Tensor, num_classes: int) -> None:
    """Raises BadRequest for a class outside 0 .. num_classes - 1."""
    wrong = (target < 0) | (target >= num_classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise BadRequest(f"target {name!r}: class {int(target[row])} of row {row} is outside 0 .. {num_classes - 1}")
