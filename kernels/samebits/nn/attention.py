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

    def __init__(self, features: int, bias: bool) -> None:
        super().__init__(features, features, bias)
        if bias:
            self.begin("bias", (features,), Constant(0.0))


class MultiheadAttention(Layer):
    """Self-attention of x [B, T, F] by `samebits.multihead_attention`; batch first.

    causal: row i sees rows j <= i. num_kv_heads: grouped queries, each head of keys and values serving several of
    queries. rotary_base: queries and keys turned by their position, e.g. 10000.
    Parameters: in_proj_weight [F + 2G, F], in_proj_bias [F + 2G], out_proj.weight [F, F], out_proj.bias [F], where G is
    num_kv_heads * F / num_heads; without grouping they are those of torch's module.
    """

    in_proj_weight: Parameter
    in_proj_bias: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        *,
        causal: bool = False,
        num_kv_heads: int | None = None,
        rotary_base: float | None = None,
    ) -> None:
        super().__init__()
        groups = num_heads if num_kv_heads is None else num_kv_heads
        fits = num_heads >= 1 and embed_dim >= num_heads and embed_dim % num_heads == 0
        require(fits, "MultiheadAttention", f"{embed_dim} features cannot be cut into {num_heads} heads")
        shared = groups >= 1 and num_heads % groups == 0
        require(shared, "MultiheadAttention", f"{num_heads} heads cannot share {groups} heads of keys")
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, groups
        self.causal, self.rotary_base = causal, rotary_base
        wide = embed_dim + 2 * groups * (embed_dim // num_heads)
        self.begin("in_proj_weight", (wide, embed_dim), Uniform(math.sqrt(6.0 / (embed_dim + wide))))
        if bias:
            self.begin("in_proj_bias", (wide,), Constant(0.0))
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = OutProjection(embed_dim, bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, F], of the same shape after; mask is bool, its axes those of [B, H, T, T] or 1."""
        out = self.out_proj
        return samebits.multihead_attention(
            x, self.in_proj_weight, self.in_proj_bias, out.weight, out.bias, self.num_heads, self.causal, mask,
            self.num_kv_heads, self.rotary_base,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The sizes and options."""
        told = f"{self.embed_dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}"
        return f"{told}, causal={self.causal}, rotary_base={self.rotary_base}"
