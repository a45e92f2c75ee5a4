"""One training step of a 4-layer transformer, forward to optimizer: one model, by torch's parts and by samebits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import samebits
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kernels.registry import Case, Limits, Row, group

LAYERS, FEATURES, HEADS, ROWS, BATCH, CLASSES = 4, 256, 8, 64, 32, 64
EPS = 1e-5


class Layer(nn.Module):
    """The parameters of one layer, norms first, and what torch computes with them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(FEATURES), nn.LayerNorm(FEATURES)
        self.qkv, self.out = nn.Linear(FEATURES, 3 * FEATURES), nn.Linear(FEATURES, FEATURES)
        self.up, self.down = nn.Linear(FEATURES, 4 * FEATURES), nn.Linear(4 * FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, HEADS, -1).unbind(2)
        mixed = functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return out


class Model(nn.Module):
    """A linear from 64 features, the layers, a norm, a linear to 64 classes for every row."""

    def __init__(self) -> None:
        super().__init__()
        self.begin, self.end = nn.Linear(CLASSES, FEATURES), nn.Linear(FEATURES, CLASSES)
        self.layers, self.norm = nn.ModuleList(Layer() for _ in range(LAYERS)), nn.LayerNorm(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.end(self.norm(x)).flatten(0, 1)
        return out


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return samebits.linear(x, module.weight, module.bias)


def _norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    return samebits.layer_norm(x, module.weight, module.bias, EPS)


def _layer(layer: Layer, x: Tensor) -> Tensor:
    x, beside = samebits.fork(x, 2)
    parameters = (layer.qkv.weight, layer.qkv.bias, layer.out.weight, layer.out.bias)
    x = samebits.add(beside, samebits.multihead_attention(_norm(layer.norm1, x), *parameters, HEADS))
    x, beside = samebits.fork(x, 2)
    return samebits.add(beside, _linear(layer.down, samebits.gelu(_linear(layer.up, _norm(layer.norm2, x)))))


def _ours(model: Model, x: Tensor) -> Tensor:
    x = _linear(model.begin, x)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        x = _layer(layer, x)
    return _linear(model.end, _norm(model.norm, x)).flatten(0, 1)


def _plain_step(model: Model, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _our_step(model: Model, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    optimizer = samebits.optim.AdamW(model.parameters())

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = samebits.cross_entropy(_ours(model, x), target)
        loss.backward()
        optimizer.step()
        return loss

    return step


@group("step", Limits(worst_reach=1.25, worst_aim=0.95, note="fused AdamW on torch's side; zero_grad sets to None"))
def step(quick: bool, threads: int) -> Iterator[Case | Row]:
    """Both sides begin with the same parameters."""
    x, target = torch.randn(BATCH, ROWS, CLASSES), torch.randint(CLASSES, (BATCH * ROWS,))
    plain, ours = Model(), Model()
    ours.load_state_dict(plain.state_dict())
    name = f"{LAYERS} layers, {FEATURES} wide, {BATCH}x{ROWS} rows"
    yield Case(name, _plain_step(plain, x, target), _our_step(ours, x, target))
