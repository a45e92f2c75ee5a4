"""Attention by heads: the forward alone as in inference, and with all three gradients; for information."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import samebits
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.registry import Case, Limits, Row, group

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# batch, heads, heads of keys, rows, keys, width, causal
TRAINING = ((32, 8, 8, 64, 64, 32, False), (32, 8, 8, 64, 64, 32, True), (1, 8, 2, 1024, 1024, 64, True))
DECODING = ((1, 8, 8, 1, 1024, 64, False), (8, 8, 2, 1, 512, 64, False))


def _both(attend: Attend, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Callable[[], object]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    return lambda: torch.autograd.grad(attend(leaves[0], leaves[1], leaves[2]), leaves, grad)


def _forward(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.no_grad():
            return attend(q, k, v)

    return run


@group("attention", Limits(note="no limit is set for these"))
def attention(quick: bool, threads: int) -> Iterator[Case | Row]:
    """Training shapes, then one query beside many keys."""
    for batch, heads, groups, rows, keys, width, causal in TRAINING[: 2 if quick else None] + DECODING:
        q, grad = torch.randn(batch, heads, rows, width), torch.randn(batch, heads, rows, width)
        k, v = torch.randn(batch, groups, keys, width), torch.randn(batch, groups, keys, width)

        def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool = causal, grouped: bool = groups < heads) -> Tensor:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

        def ours(q: Tensor, k: Tensor, v: Tensor, causal: bool = causal) -> Tensor:
            return samebits.attention(q, k, v, causal=causal)

        name = f"{batch}x{heads}/{groups}x{rows}x{keys}x{width}{' causal' if causal else ''}"
        yield Case(f"{name} forward", _forward(plain, q, k, v), _forward(ours, q, k, v))
        if rows > 1:
            yield Case(f"{name} both", _both(plain, q, k, v, grad), _both(ours, q, k, v, grad))
