"""Transformer parts: the feed-forward network, and torch's encoder layer with its parameter names."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn import Module, ModuleList

import samebits
from samebits.nn.activations import GELU, ReLU
from samebits.nn.attention import MultiheadAttention
from samebits.nn.dropout import Dropout
from samebits.nn.linear import Linear
from samebits.nn.norms import LayerNorm


class MLP(Module):
    """down(gelu(up(x))): linear to the hidden width, GELU, linear back."""

    def __init__(self, features: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = Linear(features, hidden, bias), Linear(hidden, features, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., F], of the same shape after."""
        return self.down(samebits.gelu(self.up(x)))  # type: ignore[no-any-return]  # torch types calls of modules so


class SwiGLU(Module):
    """down(silu(gate(x)) * up(x)): two linears to the hidden width, one of them a gate, and one back.

    x is forked, the gate's use first.
    """

    def __init__(self, features: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.gate, self.up = Linear(features, hidden, bias), Linear(features, hidden, bias)
        self.down = Linear(hidden, features, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., F], of the same shape after."""
        first, second = samebits.fork(x, 2)
        inner = samebits.mul(samebits.silu(self.gate(first)), self.up(second))
        return self.down(inner)  # type: ignore[no-any-return]  # torch types calls of modules so


class TransformerEncoderLayer(Module):
    """Attention and a feed-forward network, each around a residual, normed first or last; batch first.

    With norm_first: x = x + drop1(attention(norm1(x))); x = x + drop2(linear2(drop(act(linear1(norm2(x)))))).
    Else: x = norm1(x + drop1(attention(x))); x = norm2(x + drop2(linear2(drop(act(linear1(x)))))).
    Each x that is used twice is forked, the residual's use first. Parameter names are those of torch's layer.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, nhead, causal=causal)
        self.linear1, self.linear2 = Linear(d_model, dim_feedforward), Linear(dim_feedforward, d_model)
        self.norm1, self.norm2 = LayerNorm(d_model, layer_norm_eps), LayerNorm(d_model, layer_norm_eps)
        self.dropout, self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout), Dropout(dropout)
        if activation not in ("relu", "gelu"):
            raise ValueError(f"TransformerEncoderLayer: activation must be relu or gelu, not {activation!r}")
        self.activation: Module = ReLU() if activation == "relu" else GELU()
        self.norm_first = norm_first

    def _attend(self, x: Tensor) -> Tensor:
        return self.dropout1(self.self_attn(x))  # type: ignore[no-any-return]  # torch types calls of modules so

    def _feed(self, x: Tensor) -> Tensor:
        inner = self.dropout(self.activation(self.linear1(x)))
        return self.dropout2(self.linear2(inner))  # type: ignore[no-any-return]  # as above

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, F], of the same shape after."""
        for norm, branch in ((self.norm1, self._attend), (self.norm2, self._feed)):
            skip, inner = samebits.fork(x, 2)
            inner = branch(norm(inner) if self.norm_first else inner)
            x = samebits.add(skip, inner)
            x = x if self.norm_first else norm(x)
        return x


class TransformerEncoder(Module):
    """One layer after another, and a norm at the end if there is one."""

    def __init__(self, layers: Iterable[Module], norm: Module | None = None) -> None:
        super().__init__()
        self.layers, self.norm = ModuleList(layers), norm

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, F], of the same shape after."""
        for layer in self.layers:
            x = layer(x)
        return x if self.norm is None else self.norm(x)
