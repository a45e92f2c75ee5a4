"""Stages for the tests, and the small driver that trains them without any network."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vnode_models import classifier, middle, spec

from pnode.vnode.stage import Stage

ROWS = 6


def rows_of(seed: int, rows: int = ROWS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and targets for the classifier. The values do not matter, so torch may draw them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {"x0": torch.randn(rows, 3, 4, generator=generator)}
    return inputs, {"label": torch.randint(0, 5, (rows,), generator=generator)}


def middle_rows(rows: int = ROWS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of the middle VNode, and gradients for its float outputs."""
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "a": torch.randn(rows, 4, generator=generator),
        "b": torch.randn(rows, 6, generator=generator),
        "tag": torch.arange(rows),
    }
    gradients = {name: torch.randn(rows, 6, generator=generator) for name in ("e", "b")}
    return inputs, gradients


def classifier_stage(**changes: Any) -> Stage:
    return Stage(spec(classifier(**changes)))


def middle_stage(**changes: Any) -> Stage:
    return Stage(spec(middle(**changes)))


def part(tensors: Mapping[str, Tensor], low: int, high: int) -> dict[str, Tensor]:
    """Rows low .. high - 1 of every tensor."""
    return {name: tensor[low:high] for name, tensor in tensors.items()}


def train_step(stage: Stage, step: int, cuts: tuple[int, ...] = ()) -> float:
    """One step of the classifier in microbatches that begin at 0 and at `cuts`. Returns the mean loss."""
    inputs, targets = rows_of(step)
    edges = [0, *cuts, ROWS]
    for microbatch, (low, high) in enumerate(itertools.pairwise(edges)):
        stage.begin(step, microbatch, ROWS, part(inputs, low, high), part(targets, low, high))
        stage.finish(step, microbatch, {}, want_input_gradients=False)
    applied = stage.apply(step, len(edges) - 1)
    assert applied.version == step + 1
    assert applied.loss is not None
    return applied.loss
