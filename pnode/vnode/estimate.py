"""How much memory a VNode takes at its peak, from its spec alone: what a node judges before anything is loaded.

    the weights, their gradients, and what the optimizer keeps for each of them
    both boxes in full
    the graphs of a whole window of microbatches, each of `max_rows` rows
    the worst of what comes and goes: the gradients of a backward, or a state on its way in or out
    what an interpreter takes to run at all

It is never below the measured peak, and at most 40 % above it where every microbatch has `max_rows` rows.
"""

from __future__ import annotations

from collections.abc import Iterable

from pnode.v1 import spec_pb2
from pnode.vnode import allow_list, liveness, sizes, state
from pnode.vnode.allow_list import Value
from pnode.vnode.tensors import num_bytes, num_elements

# Pages that a worker writes as it starts, before its VNode has any size; and the kernels' own workspace.
_BASE_BYTES = 6 << 20
# Activations come and go by the hundred, and not every piece that was freed fits what is asked for next. Measured:
# the allocator holds up to a quarter more than lives.
_SPLINTERS = 1.28
# Operators whose backward needs what went in, or what came out.
_KEEPS_INPUTS = frozenset({"linear", "layer_norm", "multihead_attention", "matmul", "gelu", "relu"})
_KEEPS_OUTPUT = frozenset({"softmax"})


def peak_bytes(spec: spec_pb2.VNodeSpec) -> int:
    """The estimate for a valid spec, in bytes of `limits.memory_bytes`."""
    weights = sum(4 * num_elements(parameter.shape) for parameter in allow_list.parameter_specs(spec))
    kept = len(state.optimizer_tensors(spec.optimizer))
    values = allow_list.value_shapes(spec)
    rows = spec.limits.max_rows
    graph, passing = rows * _graph_bytes(spec, values), rows * _passing_bytes(spec, values)
    record = (1 + kept) * weights
    boxes = sizes.inbox_bytes(spec) + sizes.outbox_bytes(spec)
    coming_and_going = max(int(_SPLINTERS * passing), 2 * record)
    return _BASE_BYTES + (2 + kept) * weights + boxes + int(_SPLINTERS * spec.window * graph) + coming_and_going


def _graph_bytes(spec: spec_pb2.VNodeSpec, values: dict[str, Value]) -> int:
    """Of one row: the leaves and roots of a graph, and everything that some backward needs."""
    needed = {given.name for given in spec.inputs} | set(liveness.training_roots(spec))
    inner = 0
    for op in spec.operators:
        kind = allow_list.kind_of(op, op.name)
        if kind in _KEEPS_INPUTS:
            needed.update(op.inputs)
        if kind in _KEEPS_OUTPUT:
            needed.add(op.output)
        inner += _inner_bytes(op, values)
    loss = 2 * _bytes([values[spec.loss.cross_entropy.logits]]) if spec.HasField("loss") else 0
    return _bytes(values[name] for name in needed) + inner + loss


def _inner_bytes(op: spec_pb2.Operator, values: dict[str, Value]) -> int:
    """What one operator keeps of its own."""
    kind = allow_list.kind_of(op, op.name)
    if kind == "gelu":  # its derivative, made while its input still stands
        return 4 * num_elements(values[op.output].shape)
    if kind == "layer_norm":
        return 8 * num_elements(values[op.output].shape[:-1])
    if kind != "multihead_attention":
        return 0
    tokens, features = values[op.output].shape
    return 4 * (op.multihead_attention.num_heads * tokens * tokens + 4 * tokens * features)


def _passing_bytes(spec: spec_pb2.VNodeSpec, values: dict[str, Value]) -> int:
    """Of one row: gradients on their way back through the widest operator, and the inputs as they came."""
    widest = max(
        (
            _bytes([values[op.output], *(values[name] for name in op.inputs)]) + _inner_bytes(op, values)
            for op in spec.operators
        ),
        default=0,
    )
    return widest + _bytes(values[given.name] for given in spec.inputs)


def _bytes(values: Iterable[Value]) -> int:
    return sum(num_bytes(value.dtype, value.shape) for value in values)
