"""Convolution and pooling of images [B, C, H, W], with the parameters of torch's modules of these names."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Module, Parameter

import samebits
from samebits._check import require
from samebits.nn._layer import Layer, Uniform
from samebits.nn.linear import inverse_root

Pair = int | tuple[int, int]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class Conv2d(Layer):
    """`samebits.conv2d` with weight [O, C/groups, kh, kw] and bias [O]; padding is zeros that no chain sees."""

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        fits = groups >= 1 and in_channels % groups == 0 and out_channels % groups == 0
        require(fits, "Conv2d", f"{in_channels} and {out_channels} channels cannot be cut into {groups} groups")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        rows, columns = self.kernel_size
        beginning = Uniform(inverse_root(in_channels // groups * rows * columns))
        self.begin("weight", (out_channels, in_channels // groups, rows, columns), beginning)
        if bias:
            self.begin("bias", (out_channels,), beginning)
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] to [B, O, H', W']."""
        return samebits.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """The sizes."""
        told = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{told}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}"


class _Pool(Module):
    """What both poolings share: windows."""

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> None:
        super().__init__()
        self.kernel_size, self.padding = _pair(kernel_size), _pair(padding)
        self.stride = self.kernel_size if stride is None else _pair(stride)

    def extra_repr(self) -> str:
        """The windows."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool):
    """`samebits.max_pool2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] to [B, C, H', W']."""
        return samebits.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pool):
    """`samebits.avg_pool2d`; padding counts, as in torch by default."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] to [B, C, H', W']."""
        return samebits.avg_pool2d(x, self.kernel_size, self.stride, self.padding)
