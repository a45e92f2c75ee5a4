"""One step of a tiny VNode in the zygote, so that no worker is the first to import or compile anything."""

from __future__ import annotations

from collections.abc import Sequence

import samebits
import torch

from pnode.sandbox.shared import copied
from pnode.sandbox.worker import Commands, Fields
from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import torch_profile
from pnode.vnode.tensors import TensorBytes, num_bytes

_TOKENS = 2
_FEATURES = 4


def run(commands: Commands) -> None:
    """Every command once. Without a backward where torch has CUDA: autograd would start a thread for each GPU."""
    torch_profile.numerics_class("cpu")  # reads a file, which a worker cannot
    _optimize()
    spec = _spec()
    raw = spec.SerializeToString()
    commands("create", {}, [TensorBytes("spec", tensor_pb2.DTYPE_U8, (len(raw),), raw)])
    x = _zeros("x", tensor_pb2.DTYPE_F32, (1, _TOKENS, _FEATURES))
    _, outputs = commands("forward", {}, [x])
    for output in outputs:
        copied(output)
    if torch.version.cuda is None:
        _train(commands, [x, _zeros("label", tensor_pb2.DTYPE_I64, (1,))])
    _, state = commands("state", {}, ())
    stands_at: Fields = {"version": 1 if torch.version.cuda is None else 0}
    commands("restore", stands_at, [copied(tensor) for tensor in state])
    commands("describe", {}, ())


def _optimize() -> None:
    """Optimizers import more of torch when they first step, and a worker can import nothing.

    torch's own import its compiler, two seconds of the zygote's start: without it a boxed VNode of profile `torch`
    could not take its first step.
    """
    for kind in (samebits.optim.SGD, samebits.optim.AdamW, torch.optim.SGD, torch.optim.AdamW):
        weight = torch.nn.Parameter(torch.zeros(1))
        weight.grad = torch.zeros(1)
        kind([weight], 0.1).step()


def _train(commands: Commands, tensors: Sequence[TensorBytes]) -> None:
    microbatch: Fields = {"step": 0, "microbatch": 0}
    commands("begin", {**microbatch, "batch_rows": 1, "num_inputs": 1}, tensors)
    commands("finish", {**microbatch, "want_input_gradients": True}, ())
    commands("apply", {"step": 0, "num_microbatches": 1}, ())


def _zeros(name: str, dtype: int, shape: tuple[int, ...]) -> TensorBytes:
    return TensorBytes(name, dtype, shape, bytes(num_bytes(dtype, shape)))


def _spec() -> spec_pb2.VNodeSpec:
    """A transformer block in small, with every operator that a model of today has."""
    linear = spec_pb2.Linear(in_features=_FEATURES, out_features=_FEATURES, bias=True)
    attention = spec_pb2.MultiheadAttention(features=_FEATURES, num_heads=2)
    operators = [
        _operator("positions", "x", position_embedding=spec_pb2.PositionEmbedding(tokens=_TOKENS, features=_FEATURES)),
        _operator("norm", "positions", layer_norm=spec_pb2.LayerNorm(features=_FEATURES, eps=1e-5)),
        _operator("attention", "norm", multihead_attention=attention),
        _operator("sum", "attention", "positions", add=spec_pb2.Add()),
        _operator("linear", "sum", linear=linear),
        _operator("gelu", "linear", gelu=spec_pb2.Gelu()),
        _operator("narrow", "gelu", to_bfloat16=spec_pb2.ToBfloat16()),
        _operator("relu", "narrow", relu=spec_pb2.Relu()),
        _operator("pooled", "relu", mean_pool=spec_pb2.MeanPool()),
    ]
    return spec_pb2.VNodeSpec(
        id="rehearsal",
        run="rehearsal",
        profile="samebits-1",
        inputs=[tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DTYPE_F32, shape=[_TOKENS, _FEATURES])],
        targets=[tensor_pb2.TensorSpec(name="label", dtype=tensor_pb2.DTYPE_I64)],
        operators=operators,
        loss=spec_pb2.Loss(cross_entropy=spec_pb2.CrossEntropy(logits="pooled", target="label")),
        optimizer=spec_pb2.Optimizer(adamw=spec_pb2.AdamW(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)),
        limits=spec_pb2.Limits(memory_bytes=1 << 30, cpu_s=60, wall_s=60, max_rows=1),
        checkpoint=spec_pb2.CheckpointPolicy(keep=1),
        window=1,
    )


def _operator(name: str, *inputs: str, **kind: object) -> spec_pb2.Operator:
    operator = spec_pb2.Operator(name=name, inputs=inputs, output=name)
    for field, message in kind.items():
        getattr(operator, field).CopyFrom(message)
    return operator
