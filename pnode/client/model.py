"""A model as it is before it is cut: a list of operators in single-assignment form.

Operators are named by their path in the model, and so are their parameters, wherever the model is cut. Each value has
the name of the operator that defines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode.allow_list import operator_parameters
from pnode.vnode.tensors import num_elements

Operator = spec_pb2.Operator


@dataclass(frozen=True)
class Model:
    """Rows of `inputs` and `targets` in, operators in order, a loss at the end."""

    inputs: tuple[tensor_pb2.TensorSpec, ...]
    targets: tuple[tensor_pb2.TensorSpec, ...]
    operators: tuple[Operator, ...]
    loss: spec_pb2.Loss

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters together."""
        owned = (parameter for op in self.operators for parameter in operator_parameters(op))
        return sum(num_elements(parameter.shape) for parameter in owned)


def linear(name: str, x: str, in_features: int, out_features: int) -> Operator:
    """y = x @ weight.T + bias over the last axis."""
    kind = spec_pb2.Linear(in_features=in_features, out_features=out_features, bias=True)
    return Operator(name=name, inputs=[x], output=name, linear=kind)


def layer_norm(name: str, x: str, features: int, eps: float = 1e-5) -> Operator:
    """Normalised over the last axis, then scaled and shifted."""
    return Operator(name=name, inputs=[x], output=name, layer_norm=spec_pb2.LayerNorm(features=features, eps=eps))


def add(name: str, a: str, b: str) -> Operator:
    """a + b."""
    return Operator(name=name, inputs=[a, b], output=name, add=spec_pb2.Add())


def transformer_classifier(
    *, tokens: int, in_features: int, features: int, num_blocks: int, num_heads: int, mlp: int, classes: int
) -> Model:
    """A pre-norm transformer encoder over rows of [tokens, in_features] f32 ("tokens"), pooled by their mean.

    mlp: the hidden width as a multiple of `features`. The target is one i64 class a row ("label").
    """
    embedding = spec_pb2.PositionEmbedding(tokens=tokens, features=features)
    operators = [
        linear("embed", "tokens", in_features, features),
        Operator(name="position", inputs=["embed"], output="position", position_embedding=embedding),
    ]
    for index in range(num_blocks):
        operators += _block(f"block{index}", operators[-1].output, features, num_heads, mlp)
    operators += [
        layer_norm("norm", operators[-1].output, features),
        Operator(name="pool", inputs=["norm"], output="pool", mean_pool=spec_pb2.MeanPool()),
        linear("head", "pool", features, classes),
    ]
    return Model(
        inputs=(_tensor("tokens", tensor_pb2.DTYPE_F32, (tokens, in_features)),),
        targets=(_tensor("label", tensor_pb2.DTYPE_I64, ()),),
        operators=tuple(operators),
        loss=spec_pb2.Loss(cross_entropy=spec_pb2.CrossEntropy(logits="head", target="label")),
    )


def _block(name: str, x: str, features: int, num_heads: int, mlp: int) -> list[Operator]:
    attention = spec_pb2.MultiheadAttention(features=features, num_heads=num_heads)
    attended, up, gelu = f"{name}.attention", f"{name}.mlp.up", f"{name}.mlp.gelu"
    return [
        layer_norm(f"{name}.norm1", x, features),
        Operator(name=attended, inputs=[f"{name}.norm1"], output=attended, multihead_attention=attention),
        add(f"{name}.add1", x, attended),
        layer_norm(f"{name}.norm2", f"{name}.add1", features),
        linear(up, f"{name}.norm2", features, mlp * features),
        Operator(name=gelu, inputs=[up], output=gelu, gelu=spec_pb2.Gelu()),
        linear(f"{name}.mlp.down", gelu, mlp * features, features),
        add(f"{name}.add2", f"{name}.add1", f"{name}.mlp.down"),
    ]


def _tensor(name: str, dtype: tensor_pb2.DType.ValueType, shape: Sequence[int]) -> tensor_pb2.TensorSpec:
    return tensor_pb2.TensorSpec(name=name, dtype=dtype, shape=shape)
