"""Profile `samebits-1`: the operators of kernels/samebits, the same bits on every machine. CPU for now."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import samebits
import torch
from torch import Tensor

from pnode.errors import ConfigError
from pnode.v1 import spec_pb2

_Run = Callable[[spec_pb2.Operator, Sequence[Tensor], Sequence[Tensor]], Tensor]


def _linear(op: spec_pb2.Operator, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return samebits.linear(inputs[0], parameters[0], parameters[1] if op.linear.bias else None)


def _layer_norm(op: spec_pb2.Operator, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return samebits.layer_norm(inputs[0], parameters[0], parameters[1], op.layer_norm.eps)


def _multihead_attention(op: spec_pb2.Operator, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    kind = op.multihead_attention
    qkv_weight, qkv_bias, out_weight, out_bias = parameters
    return samebits.multihead_attention(
        inputs[0], qkv_weight, qkv_bias, out_weight, out_bias, kind.num_heads, causal=kind.causal
    )


def _position_embedding(_: spec_pb2.Operator, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return samebits.position_embedding(inputs[0], parameters[0])


OPERATORS: dict[str, _Run] = {
    "linear": _linear,
    "layer_norm": _layer_norm,
    "multihead_attention": _multihead_attention,
    "position_embedding": _position_embedding,
    "matmul": lambda _op, inputs, _parameters: samebits.matmul(inputs[0], inputs[1]),
    "add": lambda _op, inputs, _parameters: samebits.add(inputs[0], inputs[1]),
    "mul": lambda _op, inputs, _parameters: samebits.mul(inputs[0], inputs[1]),
    "rms_norm": lambda op, inputs, parameters: samebits.rms_norm(inputs[0], parameters[0], op.rms_norm.eps),
    "silu": lambda _op, inputs, _parameters: samebits.silu(inputs[0]),
    "sigmoid": lambda _op, inputs, _parameters: samebits.sigmoid(inputs[0]),
    "tanh": lambda _op, inputs, _parameters: samebits.tanh(inputs[0]),
    "log_softmax": lambda _op, inputs, _parameters: samebits.log_softmax(inputs[0]),
    "relu": lambda _op, inputs, _parameters: samebits.relu(inputs[0]),
    "gelu": lambda _op, inputs, _parameters: samebits.gelu(inputs[0]),
    "softmax": lambda _op, inputs, _parameters: samebits.softmax(inputs[0]),
    "mean_pool": lambda _op, inputs, _parameters: samebits.mean_pool(inputs[0]),
    "identity": lambda _op, inputs, _parameters: inputs[0],
    "to_bfloat16": lambda _op, inputs, _parameters: samebits.to_bfloat16(inputs[0]),
    "to_float32": lambda _op, inputs, _parameters: samebits.to_float32(inputs[0]),
}


class SamebitsProfile:
    """See `pnode.vnode.profile.Profile`. `num_threads` changes the speed and no bit."""

    def __init__(self, device: str, num_threads: int) -> None:
        if device != "cpu":
            raise ConfigError(f"profile {samebits.PROFILE} runs on the cpu; device {device!r} needs profile torch")
        self._num_threads = num_threads

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def numerics_class(self) -> str:
        return samebits.PROFILE

    def activate(self) -> None:
        if samebits.get_num_threads() != self._num_threads:
            samebits.set_num_threads(self._num_threads)

    def run(self, op: spec_pb2.Operator, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        return OPERATORS[str(op.WhichOneof("kind"))](op, inputs, parameters)

    def fork(self, value: Tensor, num_readers: int) -> Sequence[Tensor]:
        return samebits.fork(value, num_readers)

    def cross_entropy(self, logits: Tensor, target: Tensor, batch_rows: int) -> Tensor:
        return samebits.cross_entropy(logits, target, count=batch_rows)

    def row_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return samebits.cross_entropy(logits, target, reduction="none")

    def row_sum(self, values: Tensor, start: Tensor) -> Tensor:
        return samebits.row_sum(values, start)

    def optimizer(self, parameters: Sequence[Tensor], spec: spec_pb2.Optimizer) -> torch.optim.Optimizer:
        if spec.WhichOneof("kind") == "sgd":
            sgd = spec.sgd
            return samebits.optim.SGD(parameters, sgd.lr, sgd.momentum, sgd.weight_decay)
        adamw = spec.adamw
        betas = (adamw.beta1, adamw.beta2)
        return samebits.optim.AdamW(parameters, adamw.lr, betas, adamw.eps, adamw.weight_decay)

    def step_count(self, version: int) -> object:
        return version
