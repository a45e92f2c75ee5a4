"""Models as users write them in plain torch, for the tests of convert."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """A transformer block written by hand: residuals, one projection for q, k and v, causal attention."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Dropout(0.25), nn.Linear(12, width))

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(rows, tokens, width))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Model(nn.Module):
    """Tokens to classes: an embedding, blocks of one's own, and a head on the last position."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x[:, -1])
        return out


class Mixed(nn.Module):
    """Functional spelling, a parameter used directly, an in-place sum and an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, 20).view(4, 5))
        self.first, self.act = nn.Linear(5, 5), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        y += torch.tanh(x)
        return torch.softmax(functional.linear(y.flatten(0, 0), self.weight), dim=-1)


class Spelled(nn.Module):
    """Functions where others have layers, with parameters held by the module itself; differences and signs."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.linspace(0.5, 1.5, 5)), nn.Parameter(torch.linspace(-1.0, 1.0, 5))
        self.scale = nn.Parameter(torch.linspace(1.0, 2.0, 5))
        self.kernel = nn.Parameter(torch.full((3, 2, 2, 2), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 2, H, 5]."""
        y = functional.layer_norm(x, (5,), self.gain, self.shift, 1e-3)
        y = functional.rms_norm(y, x.shape[-1:], self.scale) - x
        z = functional.conv2d((1.0 - y) / 3, self.kernel, padding=(1, 0), stride=2)
        z = z / (2.0 / (1.0 + z * z))
        return -functional.log_softmax(z.sub(0.5).flatten(2), dim=1) - z.neg().flatten(2).softmax(-1)
