"""Normalisation over the last axis, with the parameters of torch's modules of these names."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

import samebits
from samebits.nn._layer import Constant, Layer

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
