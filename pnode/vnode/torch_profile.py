"""Profile `torch`: the same specs as plain torch, deterministic algorithms forced, on CPU or CUDA.

Torch promises equal bits only for one build on one kind of device, so the class says which. Its CPU kernels and the
libraries under them choose by instruction set, by processor and by number of threads; one thread is therefore part
of the profile on CPU, and the processor's model part of the class.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from pnode.errors import ConfigError
from pnode.v1 import spec_pb2

# cuBLAS reads this when its handle is made, so it stands before anything touches the GPU.
_WORKSPACES = (":4096:8", ":16:8")

_Run = Callable[[spec_pb2.Operator, Sequence[Tensor], Sequence[Tensor]], Tensor]


def numerics_class(device: str) -> str:
    """As `torch/2.13.0+cpu/cpu/AVX512/GenuineIntel-6-143-8` or `torch/2.13.0+cu130/cuda/sm_90/NVIDIA-H200`.

    For a CUDA device this initialises CUDA: never to be called in the zygote.
    """
    kind = torch.device(device)
    if kind.type == "cpu":
        return f"torch/{torch.__version__}/cpu/{torch.backends.cpu.get_cpu_capability()}/{_processor()}"
    major, minor = torch.cuda.get_device_capability(kind)
    return f"torch/{torch.__version__}/cuda/sm_{major}{minor}/{_word(torch.cuda.get_device_name(kind))}"


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-") or "unknown"


@cache
def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Vendor, family, model and stepping of the first processor, or what the platform calls it."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:
        return _word(platform.processor() or platform.machine())
    fields = dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", text, flags=re.MULTILINE))
    intel = ("vendor_id", "cpu family", "model", "stepping")
    arm = ("CPU implementer", "CPU variant", "CPU part", "CPU revision")
    known = [fields[key] for key in (*intel, *arm) if key in fields]
    return _word("-".join(known) or platform.machine())


def _attend(op: spec_pb2.Operator, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Written out: the fused kernels choose among themselves, and some have no deterministic backward."""
    (x,), kind = inputs, op.multihead_attention
    qkv_weight, qkv_bias, out_weight, out_bias = parameters
    rows, tokens, features = x.shape
    qkv = functional.linear(x, qkv_weight, qkv_bias).view(rows, tokens, 3, kind.num_heads, features // kind.num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1)) * (features // kind.num_heads) ** -0.5
    if kind.causal:
        hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, tokens, features)
    return functional.linear(mixed, out_weight, out_bias)


def _linear(op: spec_pb2.Operator, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return functional.linear(inputs[0], parameters[0], parameters[1] if op.linear.bias else None)


def _layer_norm(op: spec_pb2.Operator, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return functional.layer_norm(inputs[0], parameters[0].shape, parameters[0], parameters[1], op.layer_norm.eps)


OPERATORS: dict[str, _Run] = {
    "linear": _linear,
    "layer_norm": _layer_norm,
    "multihead_attention": _attend,
    "position_embedding": lambda _op, inputs, parameters: inputs[0] + parameters[0],
    "matmul": lambda _op, inputs, _parameters: inputs[0] @ inputs[1],
    "add": lambda _op, inputs, _parameters: inputs[0] + inputs[1],
    "mul": lambda _op, inputs, _parameters: inputs[0] * inputs[1],
    "rms_norm": lambda op, inputs, parameters: functional.rms_norm(
        inputs[0], parameters[0].shape, parameters[0], op.rms_norm.eps
    ),
    "silu": lambda _op, inputs, _parameters: functional.silu(inputs[0]),
    "sigmoid": lambda _op, inputs, _parameters: inputs[0].sigmoid(),
    "tanh": lambda _op, inputs, _parameters: inputs[0].tanh(),
    "log_softmax": lambda _op, inputs, _parameters: inputs[0].log_softmax(-1),
    "relu": lambda _op, inputs, _parameters: functional.relu(inputs[0]),
    "gelu": lambda _op, inputs, _parameters: functional.gelu(inputs[0]),
    "softmax": lambda _op, inputs, _parameters: inputs[0].softmax(-1),
    "mean_pool": lambda _op, inputs, _parameters: inputs[0].mean(1),
    "identity": lambda _op, inputs, _parameters: inputs[0],
    "to_bfloat16": lambda _op, inputs, _parameters: inputs[0],
    "to_float32": lambda _op, inputs, _parameters: inputs[0],
}
# The dtypes of outputs that are not of their inputs' dtype.
_GIVES = {"to_bfloat16": torch.bfloat16, "to_float32": torch.float32}


class TorchProfile:
    """See `pnode.vnode.profile.Profile`. It changes settings of the whole process: one profile to a process."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        if self._device.type not in ("cpu", "cuda"):
            raise ConfigError(f"profile torch runs on cpu or cuda, not on {device!r}")
        if self._device.type == "cuda":
            if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in _WORKSPACES:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = _WORKSPACES[0]
            if not torch.cuda.is_available():
                raise ConfigError(f"device {device!r} was asked for, and torch finds no such GPU")
        self.activate()
        self._numerics_class = numerics_class(device)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def numerics_class(self) -> str:
        return self._numerics_class

    def activate(self) -> None:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        if torch.get_float32_matmul_precision() != "highest":  # TF32 is off
            torch.set_float32_matmul_precision("highest")
        if self._device.type == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)

    def run(self, op: spec_pb2.Operator, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """In binary32, as the parameters are: bfloat16 is widened before and rounded after, as in samebits."""
        kind = str(op.WhichOneof("kind"))
        found = OPERATORS[kind](op, [value.float() for value in inputs], parameters)
        return found.to(_GIVES.get(kind, inputs[0].dtype))

    def fork(self, value: Tensor, num_readers: int) -> Sequence[Tensor]:
        return [value] * num_readers

    def cross_entropy(self, logits: Tensor, target: Tensor, batch_rows: int) -> Tensor:
        return functional.cross_entropy(logits.float(), target, reduction="none").sum() * (1.0 / batch_rows)

    def row_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), target, reduction="none")

    def row_sum(self, values: Tensor, start: Tensor) -> Tensor:
        return start + values.sum()

    def optimizer(self, parameters: Sequence[Tensor], spec: spec_pb2.Optimizer) -> torch.optim.Optimizer:
        if spec.WhichOneof("kind") == "sgd":
            sgd = spec.sgd
            return torch.optim.SGD(
                parameters, lr=sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay, foreach=False
            )
        adamw = spec.adamw
        return torch.optim.AdamW(
            parameters,
            lr=adamw.lr,
            betas=(adamw.beta1, adamw.beta2),
            eps=adamw.eps,
            weight_decay=adamw.weight_decay,
            foreach=False,
        )

    def step_count(self, version: int) -> object:
        return torch.tensor(float(version))
