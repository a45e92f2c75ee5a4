"""Linear and Embedding, with the parameters of torch's modules of these names."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import Parameter

import samebits
from samebits._check import require
from samebits.nn._layer import Layer, Normal, Uniform


def inverse_root(fan_in: int) -> float:
    """1 / sqrt(fan_in), within which torch draws weights; 0 where there are none."""
    return 1.0 / math.sqrt(fan_in) if fan_in else 0.0


class Linear(Layer):
    """`samebits.linear` with weight [out, in] and bias [out]."""

    weight: Parameter
    bias: Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        require(in_features >= 0 and out_features >= 0, "Linear", "features must not be negative")
        self.in_features, self.out_features = in_features, out_features
        beginning = Uniform(inverse_root(in_features))
        self.begin("weight", (out_features, in_features), beginning)
        if bias:
            self.begin("bias", (out_features,), beginning)
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        return samebits.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Embedding(Layer):
    """`samebits.embedding` with weight [V, F]; the row at padding_idx begins at 0 and gets no gradient."""

    weight: Parameter

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        within = padding_idx is None or -num_embeddings <= padding_idx < num_embeddings
        require(within, "Embedding", f"padding_idx must be within the {num_embeddings} rows, not {padding_idx}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.begin("weight", (num_embeddings, embedding_dim), Normal(1.0, self.padding_idx))

    def forward(self, indices: Tensor) -> Tensor:
        """indices [...] to [..., F]."""
        return samebits.embedding(indices, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}"
