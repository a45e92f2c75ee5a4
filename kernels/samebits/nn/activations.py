"""Activations and other modules without parameters, by the names that torch gives them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Module

import samebits


class ReLU(Module):
    """`samebits.relu`."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        return samebits.relu(x)


class GELU(Module):
    """`samebits.gelu`, in its erf form."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        return samebits.gelu(x)


class SiLU(Module):
    """`samebits.silu`."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        return samebits.silu(x)


class Sigmoid(Module):
    """`samebits.sigmoid`."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        return samebits.sigmoid(x)


class Tanh(Module):
    """`samebits.tanh`."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        return samebits.tanh(x)


class Softmax(Module):
    """`samebits.softmax` over one axis, the last one unless another is given."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """x with that axis."""
        return samebits.softmax(x, self.dim)

    def extra_repr(self) -> str:
        """The axis."""
        return f"dim={self.dim}"


class LogSoftmax(Softmax):
    """`samebits.log_softmax` over one axis, the last one unless another is given."""

    def forward(self, x: Tensor) -> Tensor:
        """x with that axis."""
        return samebits.log_softmax(x, self.dim)


class Identity(Module):
    """x itself."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any kind."""
        return x


class Flatten(Module):
    """The axes from start_dim to end_dim as one; a view where that is possible, in any case exact."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        """x with enough axes."""
        return x.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """The axes."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"
