"""Normalisation over the last axis or by channel, with the parameters of torch's modules of these names."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

import samebits
from samebits._check import require, size
from samebits.nn._layer import Constant, Layer

RMS_EPS = 1.0 / (1 << 23)  # torch's for binary32
Shape = int | tuple[int] | list[int] | torch.Size


def last_axis(operator: str, shape: Shape) -> tuple[int]:
    """The one axis that is normalised; ValueError for several."""
    axes = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(axes) != 1:
        raise ValueError(f"{operator}: only the last axis can be normalised, not {list(axes)}")
    return (axes[0],)


class LayerNorm(Layer):
    """`samebits.layer_norm` with weight [n] and bias [n]."""

    weight: Parameter
    bias: Parameter

    def __init__(self, normalized_shape: Shape, eps: float = 1e-5) -> None:
        super().__init__()
        self.normalized_shape, self.eps = last_axis("LayerNorm", normalized_shape), eps
        self.begin("weight", self.normalized_shape, Constant(1.0))
        self.begin("bias", self.normalized_shape, Constant(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., n], of the same shape after."""
        return samebits.layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The size and eps."""
        return f"{self.normalized_shape}, eps={self.eps}"


class RMSNorm(Layer):
    """`samebits.rms_norm` with weight [n]; eps is 2**-23 unless given, torch's for binary32."""

    weight: Parameter

    def __init__(self, normalized_shape: Shape, eps: float | None = None) -> None:
        super().__init__()
        self.normalized_shape = last_axis("RMSNorm", normalized_shape)
        self.eps = RMS_EPS if eps is None else eps
        self.begin("weight", self.normalized_shape, Constant(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., n], of the same shape after."""
        return samebits.rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        """The size and eps."""
        return f"{self.normalized_shape}, eps={self.eps}"


class _BatchNorm(Layer):
    """Batch norm of x of the classes' shapes."""

    shapes: ClassVar[dict[int, str]]
    """What x may look like, by the number of its axes."""

    weight: Parameter
    bias: Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.begin("weight", (num_features,), Constant(1.0))
        self.begin("bias", (num_features,), Constant(0.0))
        self.register_buffer("running_mean", torch.zeros(num_features, dtype=torch.float32))
        self.register_buffer("running_var", torch.zeros(num_features, dtype=torch.float32).fill_(1.0))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """x of one of `shapes`, of the same shape after. A batch that is refused is not counted."""
        named = type(self).__name__
        require(x.dim() in self.shapes, named, f"x must be {' or '.join(self.shapes.values())}, not {size(x)}")
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        is_sequence = x.dim() == 3  # to the operator, an image of one row
        images = x.unsqueeze(2) if is_sequence else x
        y = samebits.batch_norm(images, *tensors, self.training, self.momentum, self.eps)
        if self.training:
            self.num_batches_tracked.add_(1)
        return y.squeeze(2) if is_sequence else y

    def extra_repr(self) -> str:
        """The channels and numbers."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm1d(_BatchNorm):
    """`samebits.batch_norm` of rows or sequences, with torch's parameters and buffers; else like BatchNorm2d."""

    shapes: ClassVar[dict[int, str]] = {2: "[B, C]", 3: "[B, C, L]"}


class BatchNorm2d(_BatchNorm):
    """`samebits.batch_norm` of images, with weight [C], bias [C] and torch's three buffers.

    In training the statistics are those of the batch given, and move running_mean and running_var in place; outside of
    it they are the running ones. A result in training depends on the whole batch, so microbatches do not equal it.
    """

    shapes: ClassVar[dict[int, str]] = {4: "[B, C, H, W]"}
