"""How much memory a VNode takes at its peak, from its spec alone: what a node judges before anything is loaded.

    the weights, their gradients, and what the optimizer keeps for each of them
    both boxes in full
    the graphs of a whole window of microbatches, each with as many rows as it may have
    the worst of what comes and goes: the gradients of a backward, a Forward of `max_rows` rows, or a state on its way
    in or out
    what an interpreter takes to run at all

It is held above the measured peak, which is another for each zygote, by how its heap happens to lie: at most at twice
the smallest of them (at 3.3 times in bf16), where microbatches and Forwards have all their rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import allow_list, liveness, sizes, state
from pnode.vnode.allow_list import Value
from pnode.vnode.tensors import num_bytes, num_elements

# Pages that a worker writes as it starts, before its VNode has any size; and the kernels' own workspace.
_BASE_BYTES = 6 << 20
# Activations come and go by the hundred, and not every piece that was freed fits what is asked for next. Measured:
# the allocator holds up to a third more than lives.
_SPLINTERS = 1.4
# A bf16 value that is kept lies between f32 copies that go again, and what is small and stays then spoils their holes
# for the next ones. Measured: from 2.8 to 5 times of what lives, by where the heap happens to lie.
_NARROW_SPLINTERS = 6.0
# What a Forward larger than the microbatches takes beyond what lives in it at once, by the size of its pieces.
# Measured: small ones mostly fit the holes that others left. From some MiB on they rarely do, and the C library keeps
# the holes; from 32 MiB on it gives pieces back at once. One no larger than a microbatch fits where a backward does.
_FORWARD = ((8 << 20, 1.7), (32 << 20, 2.9), (1 << 62, 1.3))
# Operators whose backward needs what went in, or what came out.
_KEEPS_INPUTS = frozenset(
    {"linear", "layer_norm", "multihead_attention", "matmul", "gelu", "relu", "mul", "silu", "rms_norm"}
)
_KEEPS_OUTPUT = frozenset({"softmax", "log_softmax", "sigmoid", "tanh"})
# Of these, the ones that read their own result in their backward.
_KEEPS_RESULT = _KEEPS_OUTPUT | {"relu"}


def peak_bytes(spec: spec_pb2.VNodeSpec) -> int:
    """The estimate for a valid spec, in bytes of `limits.memory_bytes`."""
    weights = sum(4 * num_elements(parameter.shape) for parameter in allow_list.parameter_specs(spec))
    kept = len(state.optimizer_tensors(spec.optimizer))
    values = allow_list.value_shapes(spec)
    rows = sizes.training_rows(spec)
    graphs, backward = spec.window * rows * _graph_bytes(spec, values), rows * _backward_bytes(spec, values)
    forward = _forward_bytes(spec, values) if rows < spec.limits.max_rows else 0
    record = (1 + kept) * weights
    boxes = sizes.inbox_bytes(spec) + sizes.outbox_bytes(spec)
    coming_and_going = max(int(_SPLINTERS * backward), forward, 2 * record)
    return _BASE_BYTES + (2 + kept) * weights + boxes + int(graphs) + coming_and_going


def _graph_bytes(spec: spec_pb2.VNodeSpec, values: dict[str, Value]) -> float:
    """Of one row: the leaves and roots of a graph, and everything that some backward needs, with its splinters."""
    needed = {given.name for given in spec.inputs} | set(liveness.training_roots(spec))
    inner = 0
    for op in spec.operators:
        kind = allow_list.kind_of(op, op.name)
        if kind in _KEEPS_INPUTS:
            needed.update(op.inputs)
        if kind in _KEEPS_OUTPUT:
            needed.add(op.output)
        inner += _inner_bytes(op, values)
    loss = 8 * num_elements(values[spec.loss.cross_entropy.logits].shape) if spec.HasField("loss") else 0
    narrow = _bytes(values[name] for name in needed if values[name].dtype == tensor_pb2.DTYPE_BF16)
    wide = _bytes(values[name] for name in needed) - narrow + inner + loss
    return _SPLINTERS * wide + _NARROW_SPLINTERS * narrow


def _inner_bytes(op: spec_pb2.Operator, values: dict[str, Value]) -> int:
    """What one operator keeps of its own for its backward."""
    kind = allow_list.kind_of(op, op.name)
    if kind in _KEEPS_RESULT and values[op.output].dtype == tensor_pb2.DTYPE_BF16:  # as it was before it was rounded
        return 4 * num_elements(values[op.output].shape)
    if kind == "gelu":  # its derivative, made while its input still stands
        return 4 * num_elements(values[op.output].shape)
    if kind in ("layer_norm", "rms_norm"):
        return 8 * num_elements(values[op.output].shape[:-1])
    return sum(_heads(op, values))


def _workspace(op: spec_pb2.Operator, values: dict[str, Value]) -> list[int]:
    """What one operator needs on the way to its output, tensor by tensor: scores, projections, heads."""
    return [*_widened(op, values), *_heads(op, values)]


def _widened(op: spec_pb2.Operator, values: dict[str, Value]) -> list[int]:
    """The f32 copies of what an operator takes and gives as bf16."""
    touched = [values[name] for name in (*op.inputs, op.output)]
    return [4 * num_elements(value.shape) for value in touched if value.dtype == tensor_pb2.DTYPE_BF16]


def _heads(op: spec_pb2.Operator, values: dict[str, Value]) -> list[int]:
    if allow_list.kind_of(op, op.name) != "multihead_attention":
        return []
    tokens, features = values[op.output].shape
    return [4 * op.multihead_attention.num_heads * tokens * tokens, 12 * tokens * features, 4 * tokens * features]


def _backward_bytes(spec: spec_pb2.VNodeSpec, values: dict[str, Value]) -> int:
    """Of one row: gradients on their way back through the widest operator, and the inputs as they came."""
    widest = max(
        (
            _bytes([values[op.output], *(values[name] for name in op.inputs)])
            + _inner_bytes(op, values)
            + sum(_widened(op, values))
            for op in spec.operators
        ),
        default=0,
    )
    return widest + _bytes(values[given.name] for given in spec.inputs)


def _forward_bytes(spec: spec_pb2.VNodeSpec, values: dict[str, Value]) -> int:
    """Of all rows of a Forward, for which nothing is kept: the most of each size of pieces, one after the other."""
    most = [0] * len(_FORWARD)
    for pieces in _standing(spec, values):
        least = 0
        for index, (bound, _) in enumerate(_FORWARD):
            found = sum(spec.limits.max_rows * each for each in pieces if least <= spec.limits.max_rows * each < bound)
            most[index], least = max(most[index], found), bound
    return int(sum(share * found for found, (_, share) in zip(most, _FORWARD, strict=True)))


def _standing(spec: spec_pb2.VNodeSpec, values: dict[str, Value]) -> Iterator[list[int]]:
    """What stands while each operator runs, by the row: inputs, outputs, what is yet to be read, and its workspace."""
    roots = liveness.forward_roots(spec)
    reads = liveness.num_reads(spec, roots)
    inputs = [given.name for given in spec.inputs]
    alive: list[str] = []
    for index in liveness.live_operators(spec, roots):
        op = spec.operators[index]
        alive.append(op.output)
        yield [*(_bytes([values[name]]) for name in (*inputs, *roots, *alive)), *_workspace(op, values)]
        for name in op.inputs:
            reads[name] -= 1
        alive = [name for name in alive if reads[name]]


def _bytes(values: Iterable[Value]) -> int:
    return sum(num_bytes(value.dtype, value.shape) for value in values)
