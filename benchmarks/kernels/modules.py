"""Lookup, dropout and what surrounds the gradients of a transformer: clipping and the optimizers but AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import samebits
import torch
from torch import Tensor
from torch.nn import functional as plain

from benchmarks.kernels.registry import Case, Limits, Row, group

LIMITS = Limits(worst_reach=2.5, worst_aim=1.0)
PLACE: dict[str, Any] = {"seed": 1, "site": 2, "step": 3}
LAYER = [(768, 256), (768,), (256, 256), (256,), (1024, 256), (1024,), (256, 1024), (256,)]  # of a transformer, d 256


def _both(operator: Callable[..., Tensor], x: Tensor) -> Callable[[], object]:
    leaf = x.detach().requires_grad_()
    grad = torch.randn(operator(leaf).shape)
    return lambda: torch.autograd.grad(operator(leaf), leaf, grad)


def _parameters(layers: int) -> list[Tensor]:
    made = [torch.randn(shape).requires_grad_() for _ in range(layers) for shape in LAYER]
    for p in made:
        p.grad = torch.randn(p.shape)
    return made


def _lookups() -> Iterator[Case]:
    indices, weight = torch.randint(0, 10000, (32, 64)), torch.randn(10000, 256)
    yield Case(
        "embedding 2048 of 10000x256 both",
        _both(lambda w: plain.embedding(indices, w), weight),
        _both(lambda w: samebits.embedding(indices, w), weight),
    )
    x = torch.randn(2048, 256)
    yield Case(
        "dropout 2048x256 both",
        _both(lambda x: plain.dropout(x, 0.1), x),
        _both(lambda x: samebits.dropout(x, 0.1, **PLACE), x),
    )


@group("modules", LIMITS)
def modules(quick: bool, threads: int) -> Iterator[Case | Row]:
    """Lookup, dropout, clipping, Adam and SGD on the parameters of a transformer's layers."""
    yield from _lookups()
    layers = 1 if quick else 4
    ours, theirs = _parameters(layers), _parameters(layers)
    yield Case(
        f"clip_grad_norm_ {layers} layers",
        lambda: torch.nn.utils.clip_grad_norm_(theirs, 1.0),
        lambda: samebits.optim.clip_grad_norm_(ours, 1.0),
    )
    yield Case(
        f"Adam {layers} layers",
        torch.optim.Adam(theirs, fused=True).step,
        samebits.optim.Adam(ours).step,
    )
    yield Case(
        f"SGD {layers} layers",
        torch.optim.SGD(theirs, 0.1, momentum=0.9, fused=True).step,
        samebits.optim.SGD(ours, 0.1, momentum=0.9).step,
    )
