"""Cutting a model into VNodes: slices of its operator list, with the values that cross each cut passed along.

Operators keep their names, and with them their parameters and initial values, so a run's digest does not know where
the model was cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from pnode.client.model import Model
from pnode.errors import SpecError
from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import allow_list
from pnode.vnode.allow_list import Value
from pnode.vnode.chain import validate_chain
from pnode.vnode.tensors import num_bytes, num_elements


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every VNode of a run has in common."""

    run: str
    seed: int
    optimizer: spec_pb2.Optimizer
    limits: spec_pb2.Limits
    profile: str = "samebits-1"
    checkpoint: spec_pb2.CheckpointPolicy = field(default_factory=lambda: spec_pb2.CheckpointPolicy(keep=3))
    window: int = 4


def cut(
    model: Model, plan: Plan, *, stages: int = 1, boundaries: Sequence[int] | None = None
) -> list[spec_pb2.VNodeSpec]:
    """The VNodes of a model, `stage1` to `stageN`, in model order.

    boundaries: positions in the operator list where a new VNode begins, ascending; without them the cuts are placed
    by `balanced`. Raises SpecError for a cut that cannot be, or that would change the order of a gradient's sum.
    """
    places = balanced(model, stages) if boundaries is None else list(boundaries)
    edges = [0, *places, len(model.operators)]
    if any(right <= left for left, right in itertools.pairwise(edges)):
        why = f"{places} does not cut {len(model.operators)} operators: ascending positions are expected"
        raise SpecError("boundaries", why)
    values = _values(model)
    specs = [
        _stage(model, plan, values, index, edges[index], edges[index + 1], len(edges) - 1)
        for index in range(len(edges) - 1)
    ]
    validate_chain(specs)
    return specs


def balanced(model: Model, stages: int) -> list[int]:
    """Boundaries for stages of about equal work, at the places nearby where the fewest bytes cross."""
    if not 1 <= stages <= len(model.operators):
        raise SpecError("stages", f"{len(model.operators)} operators cannot be cut into {stages} stages")
    values = _values(model)
    done = [0.0]
    for op in model.operators:
        done.append(done[-1] + _work(op, values))
    places: list[int] = []
    for index in range(1, stages):
        wanted = done[-1] * index / stages
        first, last = (places[-1] if places else 0) + 1, len(model.operators) - (stages - index)
        nearest = min(range(first, last + 1), key=lambda place: abs(done[place] - wanted))
        slack = done[-1] / stages / 8
        near = [place for place in range(first, last + 1) if abs(done[place] - wanted) <= slack]
        places.append(min(near or [nearest], key=lambda place: (_crossing_bytes(model, values, place), place)))
    return places


def _stage(
    model: Model, plan: Plan, values: dict[str, Value], index: int, start: int, stop: int, num_stages: int
) -> spec_pb2.VNodeSpec:
    last = index == num_stages - 1
    spec = spec_pb2.VNodeSpec(
        id=f"stage{index + 1}",
        run=plan.run,
        profile=plan.profile,
        seed=plan.seed,
        inputs=model.inputs if index == 0 else [_tensor_spec(values[name]) for name in crossing(model, start)],
        operators=model.operators[start:stop],
        outputs=[model.loss.cross_entropy.logits] if last else crossing(model, stop),
        downstream="" if last else f"stage{index + 2}",
        optimizer=plan.optimizer,
        limits=plan.limits,
        checkpoint=plan.checkpoint,
        window=plan.window,
    )
    if last:
        spec.targets.extend(model.targets)
        spec.loss.CopyFrom(model.loss)
    return spec


def crossing(model: Model, place: int) -> list[str]:
    """Names of the values defined before operator `place` and read at or after it, in the order of definition."""
    defined = [given.name for given in model.inputs] + [op.output for op in model.operators[:place]]
    read = {name for op in model.operators[place:] for name in op.inputs} | {model.loss.cross_entropy.logits}
    return [name for name in defined if name in read]


def _values(model: Model) -> dict[str, Value]:
    return allow_list.value_shapes(spec_pb2.VNodeSpec(inputs=model.inputs, operators=model.operators))


def _tensor_spec(value: Value) -> tensor_pb2.TensorSpec:
    spec = tensor_pb2.TensorSpec(name=value.name, shape=value.shape)
    spec.dtype = value.dtype  # type: ignore[assignment]  # a Value holds the number of the enum
    return spec


def _crossing_bytes(model: Model, values: dict[str, Value], place: int) -> int:
    return sum(num_bytes(values[name].dtype, values[name].shape) for name in crossing(model, place))


def _work(op: spec_pb2.Operator, values: dict[str, Value]) -> float:
    """Multiply-adds of one row, roughly: each weight once a token, and attention's two products."""
    shape = values[op.inputs[0]].shape
    tokens = num_elements(shape[:-1])
    weights = sum(num_elements(each.shape) for each in allow_list.operator_parameters(op) if len(each.shape) == 2)
    if op.HasField("position_embedding"):
        return float(num_elements(shape))
    attention = 2 * tokens * tokens * shape[-1] if op.HasField("multihead_attention") else 0
    return float(tokens * weights + attention + num_elements(values[op.output].shape))
