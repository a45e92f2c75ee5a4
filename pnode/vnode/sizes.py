"""How many bytes a VNode's tensors can take, from the spec alone: what the sandbox reserves before any request."""

from __future__ import annotations

from collections.abc import Iterable

from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import allow_list, liveness, state
from pnode.vnode.tensors import num_bytes, num_elements

# Room for a tensor's alignment in shared memory.
SLACK_BYTES = 256
_PAGE_BYTES = 4096


def training_rows(spec: spec_pb2.VNodeSpec) -> int:
    """The most rows of a microbatch. A Forward may have more of them, and keeps nothing of them."""
    return int(spec.limits.microbatch_rows or spec.limits.max_rows)


def inbox_bytes(spec: spec_pb2.VNodeSpec) -> int:
    """At most this much goes into the worker with one command: inputs and targets, output gradients, or a state."""
    rows = training_rows(spec)
    forward = _rows_bytes(spec.limits.max_rows, _shapes(spec.inputs))
    begin = _rows_bytes(rows, [*_shapes(spec.inputs), *_shapes(spec.targets)])
    finish = _rows_bytes(rows, _named(spec, spec.outputs))
    return _pages(max(forward, begin, finish, state_bytes(spec) + SLACK_BYTES))


def output_bytes(spec: spec_pb2.VNodeSpec, num_rows: int) -> int:
    """The outputs of a Forward of so many rows."""
    outputs = _named(spec, liveness.forward_roots(spec))
    return sum(num_bytes(dtype, (num_rows, *shape)) for dtype, shape in outputs)


def outbox_bytes(spec: spec_pb2.VNodeSpec) -> int:
    """At most this much comes out of the worker with one command: outputs, input gradients, or a state."""
    outputs = _rows_bytes(spec.limits.max_rows, _named(spec, liveness.forward_roots(spec)))
    gradients = _rows_bytes(training_rows(spec), _shapes(spec.inputs))
    return _pages(max(outputs, gradients, state_bytes(spec) + SLACK_BYTES))


def window_bytes(spec: spec_pb2.VNodeSpec) -> int:
    """What a front holds at most for the microbatches of a full window: inputs, targets, outputs, and all gradients."""
    inputs, outputs = _shapes(spec.inputs), _named(spec, spec.outputs)
    rows = training_rows(spec)
    return spec.window * _rows_bytes(rows, [*inputs, *_shapes(spec.targets), *outputs, *outputs, *inputs])


def state_bytes(spec: spec_pb2.VNodeSpec) -> int:
    """The size of the largest state record that fits this spec."""
    last = state.MAX_VERSION  # the longest header
    tensors = sum(4 * num_elements(shape) for shape in state.layout(spec, last).values())
    return len(state.header(spec, last)) + tensors


def least_memory_bytes(spec: spec_pb2.VNodeSpec) -> int:
    """A lower bound for `limits.memory_bytes`: weights, gradients, optimizer state, and both boxes in full."""
    weights = sum(4 * num_elements(parameter.shape) for parameter in allow_list.parameter_specs(spec))
    copies = 2 + len(state.optimizer_tensors(spec.optimizer))
    return copies * weights + inbox_bytes(spec) + outbox_bytes(spec)


def _shapes(tensors: Iterable[tensor_pb2.TensorSpec]) -> list[tuple[int, tuple[int, ...]]]:
    return [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]


def _named(spec: spec_pb2.VNodeSpec, names: Iterable[str]) -> list[tuple[int, tuple[int, ...]]]:
    values = allow_list.value_shapes(spec)
    return [(values[name].dtype, values[name].shape) for name in names]


def _rows_bytes(num_rows: int, rows: Iterable[tuple[int, tuple[int, ...]]]) -> int:
    return sum(num_bytes(dtype, (num_rows, *shape)) + SLACK_BYTES for dtype, shape in rows)


def _pages(num: int) -> int:
    return -(-num // _PAGE_BYTES) * _PAGE_BYTES
