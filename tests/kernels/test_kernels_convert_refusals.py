"""convert refuses by name whatever it does not know: every path, every reason, and nothing falls to a torch kernel."""

from __future__ import annotations

import re
from typing import Any

import pytest
import samebits
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


def reasons(module: nn.Module) -> list[tuple[str, str]]:
    with pytest.raises(samebits.CannotConvert) as caught:
        samebits.convert(module)
    assert isinstance(caught.value, TypeError)
    return [(reason.path, reason.text) for reason in caught.value.reasons]


def encoder(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 12, **{"dropout": 0.0, "batch_first": True, **options})


def hooked() -> nn.Module:
    made = nn.Linear(2, 2)
    made.register_forward_hook(lambda *_: None)
    return made


def patched() -> nn.Module:
    made = nn.Linear(2, 2)
    made.forward = made.forward  # type: ignore[method-assign]  # that is the point
    return made


def gradient_hooked() -> nn.Module:
    made = nn.Linear(2, 2)
    made.weight.register_hook(lambda grad: None)
    return made


def tied() -> nn.Module:
    made = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    made[1].weight = made[0].weight
    return made


LAYERS: list[tuple[nn.Module, str]] = [
    (nn.LSTM(2, 2), "torch.nn.modules.rnn.LSTM has no counterpart"),
    (nn.GELU("tanh"), "approximate='tanh' has no counterpart"),
    (nn.Softmax(), "dim=None has no counterpart"),
    (nn.LogSoftmax(), "dim=None has no counterpart"),
    (nn.LayerNorm(3, elementwise_affine=False), "only the last axis, with weight and bias"),
    (nn.LayerNorm((2, 3)), "only the last axis, with weight and bias"),
    (nn.RMSNorm((2, 3)), "only the last axis, with weight, has a counterpart"),
    (nn.RMSNorm(3, elementwise_affine=False), "only the last axis, with weight, has a counterpart"),
    (nn.Embedding(3, 2, max_norm=1.0), "max_norm, scale_grad_by_freq and sparse have no counterpart"),
    (nn.Linear(2, 2, dtype=torch.float64), "weight is torch.float64, not torch.float32"),
    (nn.Linear(2, 2, device="meta"), "weight is not a dense tensor on the CPU, but meta"),
    (hooked(), "has hooks"),
    (patched(), "has had its forward replaced"),
    (gradient_hooked(), "weight has gradient hooks"),
    (parametrizations.orthogonal(nn.Linear(2, 2)), "has parametrizations"),
    (encoder(dropout=0.1), "attention with a dropout of attention weights has no counterpart"),
    (encoder(batch_first=False), "batch_first=False"),
    (encoder(activation=functional.silu), "only relu and gelu"),
    (encoder(bias=False), "only the last axis, with weight and bias"),
    (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "convolution with padding_mode='reflect' has no counter"),
    (nn.Conv2d(2, 2, 3, padding="same"), "convolution with padding='same' has no counterpart"),
    (nn.ConvTranspose2d(2, 2, 3), "torch.nn.modules.conv.ConvTranspose2d has no counterpart"),
    (nn.MaxPool2d(2, ceil_mode=True), "pooling with ceil_mode has no counterpart"),
    (nn.MaxPool2d(2, return_indices=True), "pooling with return_indices has no counterpart"),
    (nn.MaxPool2d(2, dilation=2), "pooling with dilation=2 has no counterpart"),
    (nn.AvgPool2d(2, ceil_mode=True, divisor_override=3), "pooling with ceil_mode, divisor_override=3 has no counter"),
    (nn.AvgPool2d(2, padding=1, count_include_pad=False), "pooling with count_include_pad=False has no counterpart"),
    (nn.BatchNorm1d(2, affine=False), "batch norm with affine=False has no counterpart"),
    (nn.BatchNorm2d(2, affine=False), "batch norm with affine=False has no counterpart"),
    (nn.BatchNorm2d(2, track_running_stats=False), "batch norm with track_running_stats=False has no counterpart"),
    (nn.BatchNorm2d(2, momentum=None), "batch norm with momentum=None has no counterpart"),
    (nn.MultiheadAttention(8, 2), "torch.nn.modules.activation.MultiheadAttention has no counterpart"),
]


@pytest.mark.parametrize(("module", "text"), LAYERS, ids=[f"{i}" for i in range(len(LAYERS))])
def test_layers_are_refused_at_their_path(module: nn.Module, text: str) -> None:
    found = reasons(nn.Sequential(nn.Linear(2, 2), nn.Sequential(module)))
    assert any(path == "1.0" and text in told for path, told in found)


def test_every_path_is_named_at_once() -> None:
    module = nn.Sequential(nn.LSTM(2, 2), nn.Linear(2, 2), nn.Sequential(nn.GELU("tanh"), nn.GRU(2, 2)), hooked())
    assert {path for path, _ in reasons(module)} == {"0", "2.0", "2.1", "3"}
    with pytest.raises(
        TypeError, match=r"^convert: samebits has no counterpart for\n  3: has hooks.*\n  0: LSTM: torch"
    ):
        samebits.convert(module)


def test_tied_parameters_are_refused() -> None:
    assert reasons(tied()) == [("1", "1.weight is tied to 0.weight")]


def forward(function: Any) -> nn.Module:
    """A module whose forward is the function."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.weight = nn.Linear(3, 3), nn.Parameter(torch.zeros(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = function(self, self.layer(functional.linear(x, self.weight)))
            return made

    return Own()


FORWARDS: list[tuple[Any, str]] = [
    (lambda own, x: torch.sort(x)[0], "torch.sort has no counterpart"),
    (lambda own, x: x.cumsum(0), ".cumsum() has no counterpart"),
    (lambda own, x: functional.softmax(x), "softmax needs dim"),
    (lambda own, x: functional.log_softmax(x), "log_softmax needs dim"),
    (lambda own, x: x.softmax(-1, torch.float64), "with dtype=torch.float64 has no counterpart"),
    (lambda own, x: functional.layer_norm(x, (3,)), "layer_norm needs weight"),
    (lambda own, x: functional.layer_norm(x, (3,), own.weight[0]), "layer_norm needs bias"),
    (lambda own, x: functional.layer_norm(x, (2, 3), own.weight, x), "with normalized_shape=(2, 3) has no counterpart"),
    (lambda own, x: functional.rms_norm(x, [2, 3], own.weight), "with normalized_shape=[2, 3] has no counterpart"),
    (lambda own, x: functional.rms_norm(x, (3,)), "rms_norm needs weight"),
    (lambda own, x: functional.conv2d(x, x, padding="same"), "with padding='same' has no counterpart"),
    (lambda own, x: torch.sub(x, x, alpha=2), "with alpha=2 has no counterpart"),
    (lambda own, x: x - own.layer.weight, "parameter layer.weight goes into _operator.sub, where"),
    (lambda own, x: torch.div(x, 2, rounding_mode="floor"), "with rounding_mode='floor' has no counterpart"),
    (lambda own, x: x / own.layer.weight, "parameter layer.weight goes into _operator.truediv, where"),
    (lambda own, x: functional.relu(x, inplace=True), "with inplace=True has no counterpart"),
    (lambda own, x: torch.add(x, x, alpha=2), "with alpha=2 has no counterpart"),
    (lambda own, x: functional.gelu(x, approximate="tanh"), "with approximate='tanh' has no counterpart"),
    (lambda own, x: functional.scaled_dot_product_attention(x, x, x, scale=2.0), "with scale=2.0 has no counterpart"),
    (lambda own, x: functional.max_pool2d(x, 2, ceil_mode=True), "with ceil_mode=True has no counterpart"),
    (lambda own, x: functional.max_pool2d(x, 2, dilation=2), "with dilation=2 has no counterpart"),
    (lambda own, x: functional.max_pool2d(x, 2, return_indices=True), "max_pool2d_with_indices has no counterpart"),
    (lambda own, x: functional.avg_pool2d(x, 2, divisor_override=3), "with divisor_override=3 has no counterpart"),
    (lambda own, x: functional.silu(x, inplace=True), "with inplace=True has no counterpart"),
    (lambda own, x: x.sum(0, dtype=torch.float64), "with dtype=torch.float64 has no counterpart"),
    (lambda own, x: x[x.argmax()], "only ints and slices can be an index"),
    (lambda own, x: x.data, "attribute .data of a tensor has no counterpart"),
    (lambda own, x: x.chunk(2)[-1], "can be taken by 0, 1, .. only"),
    (lambda own, x: own.layer(x), "layer is called more than once"),
    (lambda own, x: functional.linear(x, own.weight), "parameter weight is used more than once"),
    (lambda own, x: x if x.sum() > 0 else -x, "cannot be traced"),
    (lambda own, x: x if own.training else torch.relu(x), "does not do the same in training"),
    (lambda own, x: x.relu_(), ".relu_() has no counterpart"),
    (lambda own, x: torch.ones(3) + x, "cannot be traced: a tensor is made in forward"),
    (lambda own, x: own.layer.weight.view(9), "parameter layer.weight goes into .view()"),
]


@pytest.mark.parametrize(("function", "text"), FORWARDS, ids=[f"{i}" for i in range(len(FORWARDS))])
def test_a_forward_of_ones_own_is_refused(function: Any, text: str) -> None:
    found = reasons(nn.Sequential(forward(function)))
    assert any(path == "0" and text in told for path, told in found), found


def test_sums_in_place_on_a_value_that_is_used_elsewhere_are_refused() -> None:
    def changed(own: Any, x: Tensor) -> Tensor:
        y = x
        y += torch.tanh(x)
        return y

    assert any("changes a value in place" in told for _, told in reasons(forward(changed)))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.act(x) + x
            return made

    assert any("act changes a value in place" in told for _, told in reasons(Own()))


def test_parameters_that_would_not_continue_their_chain_or_are_not_used_are_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift, self.spare = nn.Parameter(torch.zeros(3)), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.shift])

    told = [text for _, text in reasons(Own())]
    assert any("parameter shift goes into" in text for text in told)
    assert any("parameter spare.weight is not used" in text for text in told)


def test_layers_inside_a_trace_are_named_by_their_path() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.GELU("tanh"))

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.inner(x)
            return made

    assert [path for path, _ in reasons(nn.Sequential(Own()))] == ["0.inner.1"]


def test_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=re.escape("convert: module must be a torch.nn.Module, not int")):
        samebits.convert(3)  # type: ignore[arg-type]  # that is the point
