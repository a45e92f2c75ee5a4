"""Self-attention as a module, with the parameters of torch's MultiheadAttention."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import Parameter

import samebits
from samebits._check import require
from samebits.nn._layer import Constant, Layer, Uniform
from samebits.nn.linear import Linear


class OutProjection(Linear):
    """The last linear of attention; its bias begins at 0, as torch's does."""

    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.begin("bias", (features,), Constant(0.0))


class MultiheadAttention(Layer):
    """Self-attention of x [B, T, F] by `samebits.multihead_attention`; batch first, causal or not.

    Parameters: in_proj_weight [3F, F], in_proj_bias [3F], out_proj.weight [F, F], out_proj.bias [F].
    """

    in_proj_weight: Parameter
    in_proj_bias: Parameter

    def __init__(self, embed_dim: int, num_heads: int, causal: bool = False) -> None:
        super().__init__()
        fits = num_heads >= 1 and embed_dim >= num_heads and embed_dim % num_heads == 0
        require(fits, "MultiheadAttention", f"{embed_dim} features cannot be cut into {num_heads} heads")
        self.embed_dim, self.num_heads, self.causal = embed_dim, num_heads, causal
        glorot = Uniform(math.sqrt(6.0 / (embed_dim + 3 * embed_dim)))
        self.begin("in_proj_weight", (3 * embed_dim, embed_dim), glorot)
        self.begin("in_proj_bias", (3 * embed_dim,), Constant(0.0))
        self.out_proj = OutProjection(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, F], of the same shape after."""
        out = self.out_proj
        assert out.bias is not None
        return samebits.multihead_attention(
            x, self.in_proj_weight, self.in_proj_bias, out.weight, out.bias, self.num_heads, self.causal
        )

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, causal={self.causal}"
