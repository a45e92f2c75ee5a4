"""The operators that a VNode may be made of: for each kind, the shape that it gives and the parameters that it owns.

Torch-free: the front judges specs by these rules, the worker builds modules by the same ones. Shapes are of one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pnode.errors import SpecError
from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import bounds
from pnode.vnode.tensors import FLOATS, dtype_name, num_elements

Shape = tuple[int, ...]


class Value(NamedTuple):
    """A named value of the spec: its dtype and the shape of one row."""

    name: str
    dtype: int
    shape: Shape


class Uniform(NamedTuple):
    """Uniform in (-bound, bound)."""

    bound: float


class Normal(NamedTuple):
    """Normal around 0."""

    std: float


Init = Literal["zeros", "ones"] | Uniform | Normal


class ParameterSpec(NamedTuple):
    """One f32 parameter: its path in the uncut model, its shape, its initial distribution."""

    name: str
    shape: Shape
    init: Init


def _no_parameters(_: spec_pb2.Operator) -> list[ParameterSpec]:
    return []


@dataclass(frozen=True)
class Rule:
    """What one kind of operator asks and gives. `infer` raises SpecError under the operator's own path."""

    num_inputs: int
    infer: Callable[[spec_pb2.Operator, Sequence[Value], str], Shape]
    parameters: Callable[[spec_pb2.Operator], list[ParameterSpec]] = _no_parameters
    gives: int | None = None
    """The dtype of the output; None: that of the inputs."""


def _positive(number: int, path: str) -> int:
    if not 1 <= number <= bounds.MAX_DIM:
        raise SpecError(path, f"expected 1 to {bounds.MAX_DIM}, got {number}")
    return number


def _matches(claimed: int, actual: int, value: Value, path: str) -> None:
    if claimed != actual:
        why = f"expected {actual} to match input {value.name!r} of shape {list(value.shape)}, got {claimed}"
        raise SpecError(path, why)


def _last(value: Value, path: str) -> int:
    if not value.shape:
        raise SpecError(path, f"expected a row with an axis of features; input {value.name!r} is a single number")
    return value.shape[-1]


def _tokens_features(value: Value, path: str) -> Shape:
    if len(value.shape) != 2:
        why = f"expected a row of shape [tokens, features]; input {value.name!r} has {list(value.shape)}"
        raise SpecError(path, why)
    return value.shape


def _linear(op: spec_pb2.Operator, inputs: Sequence[Value], path: str) -> Shape:
    (x,) = inputs
    _positive(op.linear.in_features, f"{path}.linear.in_features")
    _positive(op.linear.out_features, f"{path}.linear.out_features")
    _matches(op.linear.in_features, _last(x, f"{path}.inputs[0]"), x, f"{path}.linear.in_features")
    return (*x.shape[:-1], op.linear.out_features)


def _linear_parameters(op: spec_pb2.Operator) -> list[ParameterSpec]:
    init = Uniform(1.0 / math.sqrt(op.linear.in_features))
    weight = ParameterSpec(f"{op.name}.weight", (op.linear.out_features, op.linear.in_features), init)
    bias = ParameterSpec(f"{op.name}.bias", (op.linear.out_features,), init)
    return [weight, bias] if op.linear.bias else [weight]


def _norm(op: spec_pb2.Operator, inputs: Sequence[Value], path: str) -> Shape:
    (x,) = inputs
    kind = kind_of(op, path)
    norm, here = getattr(op, kind), f"{path}.{kind}"
    _positive(norm.features, f"{here}.features")
    _matches(norm.features, _last(x, f"{path}.inputs[0]"), x, f"{here}.features")
    if not (math.isfinite(norm.eps) and norm.eps > 0.0):
        raise SpecError(f"{here}.eps", f"expected a finite number above 0, got {norm.eps}")
    return x.shape


def _layer_norm_parameters(op: spec_pb2.Operator) -> list[ParameterSpec]:
    shape = (op.layer_norm.features,)
    return [ParameterSpec(f"{op.name}.weight", shape, "ones"), ParameterSpec(f"{op.name}.bias", shape, "zeros")]


def _rms_norm_parameters(op: spec_pb2.Operator) -> list[ParameterSpec]:
    return [ParameterSpec(f"{op.name}.weight", (op.rms_norm.features,), "ones")]


def _multihead_attention(op: spec_pb2.Operator, inputs: Sequence[Value], path: str) -> Shape:
    (x,) = inputs
    kind, path_kind = op.multihead_attention, f"{path}.multihead_attention"
    _positive(kind.features, f"{path_kind}.features")
    _positive(kind.num_heads, f"{path_kind}.num_heads")
    _, features = _tokens_features(x, f"{path}.inputs[0]")
    _matches(kind.features, features, x, f"{path_kind}.features")
    if kind.features % kind.num_heads:
        raise SpecError(f"{path_kind}.num_heads", f"expected a divisor of {kind.features}, got {kind.num_heads}")
    return x.shape


def _multihead_attention_parameters(op: spec_pb2.Operator) -> list[ParameterSpec]:
    features = op.multihead_attention.features
    # Glorot for the stacked projections, as torch's own module draws them.
    qkv = Uniform(math.sqrt(6.0 / (features + 3 * features)))
    out = Uniform(1.0 / math.sqrt(features))
    return [
        ParameterSpec(f"{op.name}.qkv.weight", (3 * features, features), qkv),
        ParameterSpec(f"{op.name}.qkv.bias", (3 * features,), "zeros"),
        ParameterSpec(f"{op.name}.out.weight", (features, features), out),
        ParameterSpec(f"{op.name}.out.bias", (features,), "zeros"),
    ]


def _position_embedding(op: spec_pb2.Operator, inputs: Sequence[Value], path: str) -> Shape:
    (x,) = inputs
    kind, path_kind = op.position_embedding, f"{path}.position_embedding"
    _positive(kind.tokens, f"{path_kind}.tokens")
    _positive(kind.features, f"{path_kind}.features")
    tokens, features = _tokens_features(x, f"{path}.inputs[0]")
    _matches(kind.tokens, tokens, x, f"{path_kind}.tokens")
    _matches(kind.features, features, x, f"{path_kind}.features")
    return x.shape


def _position_embedding_parameters(op: spec_pb2.Operator) -> list[ParameterSpec]:
    kind = op.position_embedding
    return [ParameterSpec(f"{op.name}.weight", (kind.tokens, kind.features), Normal(0.02))]


def _matmul(_: spec_pb2.Operator, inputs: Sequence[Value], path: str) -> Shape:
    a, b = inputs
    # A row needs its own two axes: with fewer, the product would mix rows of the batch.
    for index, value in enumerate(inputs):
        if len(value.shape) < 2:
            why = f"expected a row with at least two axes; input {value.name!r} has {list(value.shape)}"
            raise SpecError(f"{path}.inputs[{index}]", why)
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        why = f"{list(a.shape)} @ {list(b.shape)} does not fit: expected [.., m, k] @ [.., k, n]"
        raise SpecError(f"{path}.inputs[1]", why)
    return (*a.shape[:-1], b.shape[-1])


def _alike(_: spec_pb2.Operator, inputs: Sequence[Value], path: str) -> Shape:
    a, b = inputs
    if a.shape != b.shape:
        why = f"expected {list(a.shape)} to match input {a.name!r}, got {b.name!r} of {list(b.shape)}"
        raise SpecError(f"{path}.inputs[1]", why)
    return a.shape


def _same(_: spec_pb2.Operator, inputs: Sequence[Value], path: str) -> Shape:
    del path
    return inputs[0].shape


def _softmax(_: spec_pb2.Operator, inputs: Sequence[Value], path: str) -> Shape:
    _last(inputs[0], f"{path}.inputs[0]")
    return inputs[0].shape


def _mean_pool(_: spec_pb2.Operator, inputs: Sequence[Value], path: str) -> Shape:
    return _tokens_features(inputs[0], f"{path}.inputs[0]")[1:]


RULES: dict[str, Rule] = {
    "linear": Rule(1, _linear, _linear_parameters),
    "layer_norm": Rule(1, _norm, _layer_norm_parameters),
    "multihead_attention": Rule(1, _multihead_attention, _multihead_attention_parameters),
    "position_embedding": Rule(1, _position_embedding, _position_embedding_parameters),
    "matmul": Rule(2, _matmul),
    "add": Rule(2, _alike),
    "mul": Rule(2, _alike),
    "rms_norm": Rule(1, _norm, _rms_norm_parameters),
    "silu": Rule(1, _same),
    "sigmoid": Rule(1, _same),
    "tanh": Rule(1, _same),
    "log_softmax": Rule(1, _softmax),
    "relu": Rule(1, _same),
    "gelu": Rule(1, _same),
    "softmax": Rule(1, _softmax),
    "mean_pool": Rule(1, _mean_pool),
    "identity": Rule(1, _same),
    "to_bfloat16": Rule(1, _same, gives=tensor_pb2.DTYPE_BF16),
    "to_float32": Rule(1, _same, gives=tensor_pb2.DTYPE_F32),
}


def kind_of(message: Any, path: str) -> str:
    """Which of the `kind` oneof is set: of an operator, a loss or an optimizer. Raises SpecError where none is."""
    kind = message.WhichOneof("kind")
    if kind is None:
        oneof = message.DESCRIPTOR.oneofs_by_name["kind"]
        names = ", ".join(sorted(field.name for field in oneof.fields))
        raise SpecError(f"{path}.kind", f"expected one of {names}")
    return str(kind)


def infer(op: spec_pb2.Operator, inputs: Sequence[Value], path: str) -> Value:
    """The value that `op` defines from `inputs`, in its order. Raises SpecError under `path`."""
    rule = RULES[kind_of(op, path)]
    if len(inputs) != rule.num_inputs:
        raise SpecError(f"{path}.inputs", f"expected {rule.num_inputs} inputs, got {len(inputs)}")
    _check_dtypes(inputs, path)
    shape = rule.infer(op, inputs, path)
    if num_elements(shape) > bounds.MAX_ROW_ELEMENTS:
        raise SpecError(f"{path}.output", f"a row of {list(shape)} has more than {bounds.MAX_ROW_ELEMENTS} elements")
    return Value(op.output, inputs[0].dtype if rule.gives is None else rule.gives, shape)


def _check_dtypes(inputs: Sequence[Value], path: str) -> None:
    """All f32 or all bf16: nothing is promoted unasked, for that would be one more rounding, or one less."""
    first = inputs[0]
    for position, value in enumerate(inputs):
        here = f"{path}.inputs[{position}]"
        if value.dtype not in FLOATS:
            names = " or ".join(dtype_name(dtype) for dtype in sorted(FLOATS))
            raise SpecError(here, f"operators take {names}; {value.name!r} is {dtype_name(value.dtype)}")
        if value.dtype != first.dtype:
            why = f"expected {dtype_name(first.dtype)} as of {first.name!r}, got {dtype_name(value.dtype)}"
            raise SpecError(here, f"{why} of {value.name!r}: to_float32 and to_bfloat16 change a value's dtype")


def value_shapes(spec: spec_pb2.VNodeSpec) -> dict[str, Value]:
    """Every value of the spec by name: the VNode's inputs, then what each operator defines, in order.

    Raises SpecError for a value that is read before it is defined, or defined twice.
    """
    values = {given.name: Value(given.name, given.dtype, tuple(given.shape)) for given in spec.inputs}
    for index, op in enumerate(spec.operators):
        path = f"operators[{index}]"
        for position, name in enumerate(op.inputs):
            if name not in values:
                why = f"{bounds.shown(name)} is not an input and no operator before this one defines it"
                raise SpecError(f"{path}.inputs[{position}]", why)
        if op.output in values:
            raise SpecError(f"{path}.output", f"{bounds.shown(op.output)} is defined already")
        values[op.output] = infer(op, [values[name] for name in op.inputs], path)
    return values


def operator_parameters(op: spec_pb2.Operator) -> list[ParameterSpec]:
    """The parameters that one operator owns, in the order in which its kernel takes them."""
    return RULES[kind_of(op, op.name)].parameters(op)


def parameter_specs(spec: spec_pb2.VNodeSpec) -> list[ParameterSpec]:
    """All parameters of a valid spec, in model order."""
    return [parameter for op in spec.operators for parameter in operator_parameters(op)]
