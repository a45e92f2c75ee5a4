"""Who reads which value. A dead branch is refused: what it does to a gradient (adding +0) would depend on the cut."""

from __future__ import annotations

from collections.abc import Iterable

from pnode.errors import SpecError
from pnode.v1 import spec_pb2
from pnode.vnode import allow_list


def training_roots(spec: spec_pb2.VNodeSpec) -> list[str]:
    """The values from which a backward begins: the logits where this VNode owns the loss, else its outputs."""
    return [spec.loss.cross_entropy.logits] if spec.HasField("loss") else list(spec.outputs)


def forward_roots(spec: spec_pb2.VNodeSpec) -> list[str]:
    """What Forward answers with. An owner of the loss that names no outputs answers with its logits."""
    return list(spec.outputs) or training_roots(spec)


def live_operators(spec: spec_pb2.VNodeSpec, roots: Iterable[str]) -> list[int]:
    """Ascending positions of the operators from which some root can be reached."""
    wanted = set(roots)
    live = []
    for index in range(len(spec.operators) - 1, -1, -1):
        if spec.operators[index].output in wanted:
            live.append(index)
            wanted.update(spec.operators[index].inputs)
    return live[::-1]


def num_reads(spec: spec_pb2.VNodeSpec, roots: Iterable[str]) -> dict[str, int]:
    """How often each value is read on the way to the roots; a root is read once more, after all operators."""
    named = list(roots)
    reads: dict[str, int] = {}
    for index in live_operators(spec, named):
        for name in spec.operators[index].inputs:
            reads[name] = reads.get(name, 0) + 1
    for name in named:
        reads[name] = reads.get(name, 0) + 1
    return reads


def check_liveness(spec: spec_pb2.VNodeSpec) -> None:
    """Raise SpecError for an input or an operator that reaches nothing, or that trains without reaching the loss."""
    every = {*spec.outputs, *training_roots(spec)}
    live = set(live_operators(spec, every))
    for index in range(len(spec.operators)):
        if index not in live:
            raise SpecError(f"operators[{index}].output", f"{spec.operators[index].output!r} is never read")
    reads = num_reads(spec, training_roots(spec))
    for index, given in enumerate(spec.inputs):
        if given.name not in reads:
            raise SpecError(f"inputs[{index}]", f"{given.name!r} reaches neither an output nor the loss")
    trained = set(live_operators(spec, training_roots(spec)))
    for index, op in enumerate(spec.operators):
        if index not in trained and allow_list.operator_parameters(op):
            raise SpecError(f"operators[{index}]", f"{op.name!r} has parameters but does not reach the loss")
