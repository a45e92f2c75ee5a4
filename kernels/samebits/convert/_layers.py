"""torch's layers and their counterparts: what is carried over, and which options are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn as plain
from torch.nn import Module
from torch.nn import functional as operations

from samebits import nn
from samebits.convert._errors import Unfit


def sharing(twin: Module, old: Module, *names: str) -> Module:
    """The twin with the old module's parameters or buffers themselves, and its mode."""
    for name in names:
        setattr(twin, name, getattr(old, name))
    twin.training = old.training
    return twin


def _refuse(what: str, options: dict[str, bool]) -> None:
    """Unfit, with the names of those options that hold."""
    found = [text for text, holds in options.items() if holds]
    if found:
        raise Unfit(f"{what} with {', '.join(found)} has no counterpart")


def _linear(old: Any) -> Module:
    return sharing(nn.Linear(old.in_features, old.out_features, old.bias is not None), old, "weight", "bias")


def _embedding(old: Any) -> Module:
    if old.max_norm is not None or old.scale_grad_by_freq or old.sparse:
        raise Unfit("max_norm, scale_grad_by_freq and sparse have no counterpart")
    return sharing(nn.Embedding(old.num_embeddings, old.embedding_dim, old.padding_idx), old, "weight")


def _layer_norm(old: Any) -> Module:
    if old.weight is None or old.bias is None or len(old.normalized_shape) != 1:
        raise Unfit("only the last axis, with weight and bias, has a counterpart")
    return sharing(nn.LayerNorm(old.normalized_shape, old.eps), old, "weight", "bias")


def _rms_norm(old: Any) -> Module:
    if old.weight is None or len(old.normalized_shape) != 1:
        raise Unfit("only the last axis, with weight, has a counterpart")
    return sharing(nn.RMSNorm(old.normalized_shape, old.eps), old, "weight")


def _batch_norm(old: Any) -> Module:
    options = {
        "affine=False": not old.affine,
        "track_running_stats=False": not old.track_running_stats,
        "momentum=None": old.momentum is None,
    }
    _refuse("batch norm", options)
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    kind = nn.BatchNorm1d if type(old) is plain.BatchNorm1d else nn.BatchNorm2d
    return sharing(kind(old.num_features, old.eps, old.momentum), old, *names)


def _conv2d(old: Any) -> Module:
    modes = {f"padding_mode={old.padding_mode!r}": old.padding_mode != "zeros"}
    _refuse("convolution", modes | {f"padding={old.padding!r}": isinstance(old.padding, str)})
    sizes = (old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, old.groups)
    return sharing(nn.Conv2d(*sizes, bias=old.bias is not None), old, "weight", "bias")


def _max_pool2d(old: Any) -> Module:
    options = {
        "ceil_mode": old.ceil_mode,
        "return_indices": old.return_indices,
        f"dilation={old.dilation}": old.dilation not in (1, (1, 1)),
    }
    _refuse("pooling", options)
    return nn.MaxPool2d(old.kernel_size, old.stride, old.padding)


def _avg_pool2d(old: Any) -> Module:
    options = {
        "ceil_mode": old.ceil_mode,
        "count_include_pad=False": not old.count_include_pad and old.padding not in (0, (0, 0)),
        f"divisor_override={old.divisor_override}": old.divisor_override is not None,
    }
    _refuse("pooling", options)
    return nn.AvgPool2d(old.kernel_size, old.stride, old.padding)


def _gelu(old: Any) -> Module:
    if old.approximate != "none":
        raise Unfit(f"approximate={old.approximate!r} has no counterpart, only the erf form")
    return nn.GELU()


def _softmax(old: Any) -> Module:
    if old.dim is None:
        raise Unfit("dim=None has no counterpart: torch would guess the axis")
    return (nn.LogSoftmax if type(old) is plain.LogSoftmax else nn.Softmax)(old.dim)


def _dropout(old: Any) -> Module:
    return sharing(nn.Dropout(old.p), old)


def _flatten(old: Any) -> Module:
    return nn.Flatten(old.start_dim, old.end_dim)


def _attention(old: Any, causal: bool) -> nn.MultiheadAttention:
    options = {
        "a dropout of attention weights": old.dropout != 0.0,
        "bias_k and bias_v": old.bias_k is not None or old.bias_v is not None,
        "add_zero_attn": old.add_zero_attn,
        "keys or values of another width": not old._qkv_same_embed_dim,
        "batch_first=False": not old.batch_first,
    }
    _refuse("attention", options)
    twin = nn.MultiheadAttention(old.embed_dim, old.num_heads, old.in_proj_bias is not None, causal=causal)
    sharing(twin, old, "in_proj_weight", "in_proj_bias")
    sharing(twin.out_proj, old.out_proj, "weight", "bias")
    return twin


def _activation(old: Any) -> str:
    named = {operations.relu: "relu", operations.gelu: "gelu"}
    chosen = named.get(old) if callable(old) and not isinstance(old, Module) else None
    if type(old) is plain.ReLU:
        chosen = "relu"
    if type(old) is plain.GELU and old.approximate == "none":
        chosen = "gelu"
    if chosen is None:
        raise Unfit(f"activation {old!r} has no counterpart, only relu and gelu")
    return chosen


def encoder_layer(old: Any, causal: bool) -> Module:
    """A TransformerEncoderLayer."""
    width, hidden = old.linear1.in_features, old.linear1.out_features
    rates = {part.p for part in (old.dropout, old.dropout1, old.dropout2)}
    if len(rates) != 1:
        raise Unfit("dropouts of several rates have no counterpart")
    heads, eps, activation = old.self_attn.num_heads, old.norm1.eps, _activation(old.activation)
    attention = _attention(old.self_attn, causal)
    twin = nn.TransformerEncoderLayer(width, heads, hidden, rates.pop(), activation, eps, old.norm_first, causal)
    twin.self_attn = attention
    makers = {"linear": _linear, "norm": _layer_norm, "dropout": _dropout}
    for name in ("linear1", "linear2", "norm1", "norm2", "dropout", "dropout1", "dropout2"):
        setattr(twin, name, makers[name.rstrip("12")](getattr(old, name)))
    return sharing(twin, old)


LAYERS: dict[type[Module], Callable[[Any], Module]] = {
    plain.AvgPool2d: _avg_pool2d,
    plain.BatchNorm1d: _batch_norm,
    plain.BatchNorm2d: _batch_norm,
    plain.Conv2d: _conv2d,
    plain.Dropout: _dropout,
    plain.Embedding: _embedding,
    plain.Flatten: _flatten,
    plain.GELU: _gelu,
    plain.Identity: lambda old: nn.Identity(),
    plain.LayerNorm: _layer_norm,
    plain.Linear: _linear,
    plain.LogSoftmax: _softmax,
    plain.MaxPool2d: _max_pool2d,
    plain.RMSNorm: _rms_norm,
    plain.ReLU: lambda old: nn.ReLU(),
    plain.SiLU: lambda old: nn.SiLU(),
    plain.Sigmoid: lambda old: nn.Sigmoid(),
    plain.Softmax: _softmax,
    plain.Tanh: lambda old: nn.Tanh(),
}
