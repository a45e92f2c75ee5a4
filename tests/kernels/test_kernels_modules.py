"""Modules have torch's parameter names and shapes, compose samebits' operators and no others, and begin by Philox."""

from __future__ import annotations

from typing import Any

import pytest
import samebits
import torch
from kernels_bits import assert_same_bits, floats
from samebits import nn
from samebits.random import site, uniform


def batch(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(floats(seed, "plain", *shape))


TWINS: list[tuple[Any, Any, tuple[int, ...]]] = [
    (nn.Linear(5, 7), torch.nn.Linear(5, 7), (3, 5)),
    (nn.Linear(5, 7, bias=False), torch.nn.Linear(5, 7, bias=False), (2, 3, 5)),
    (nn.LayerNorm(6, eps=1e-3), torch.nn.LayerNorm(6, eps=1e-3), (4, 6)),
    (nn.Conv2d(4, 6, 3, 2, (1, 2), 1, 2), torch.nn.Conv2d(4, 6, 3, 2, (1, 2), 1, 2), (2, 4, 7, 5)),
    (nn.Conv2d(2, 3, (2, 3), bias=False), torch.nn.Conv2d(2, 3, (2, 3), bias=False), (2, 2, 7, 5)),
    (nn.MaxPool2d(2), torch.nn.MaxPool2d(2), (2, 3, 7, 5)),
    (nn.AvgPool2d(3, 2, 1), torch.nn.AvgPool2d(3, 2, 1), (2, 3, 7, 5)),
    (nn.BatchNorm2d(3, 1e-3, 0.3), torch.nn.BatchNorm2d(3, 1e-3, 0.3), (2, 3, 7, 5)),
    (nn.BatchNorm2d(3).eval(), torch.nn.BatchNorm2d(3).eval(), (2, 3, 7, 5)),
    (nn.BatchNorm1d(3, 1e-3, 0.3), torch.nn.BatchNorm1d(3, 1e-3, 0.3), (5, 3)),
    (nn.BatchNorm1d(3, 1e-3, 0.3), torch.nn.BatchNorm1d(3, 1e-3, 0.3), (2, 3, 7)),
    (nn.BatchNorm1d(3).eval(), torch.nn.BatchNorm1d(3).eval(), (2, 3, 7)),
    (nn.RMSNorm(6, 1e-3), torch.nn.RMSNorm(6, 1e-3), (4, 6)),
    (nn.SiLU(), torch.nn.SiLU(), (3, 5)),
    (nn.Sigmoid(), torch.nn.Sigmoid(), (3, 5)),
    (nn.ReLU(), torch.nn.ReLU(), (3, 5)),
    (nn.GELU(), torch.nn.GELU(), (3, 5)),
    (nn.Tanh(), torch.nn.Tanh(), (3, 5)),
    (nn.Softmax(), torch.nn.Softmax(-1), (3, 5)),
    (nn.Softmax(1), torch.nn.Softmax(1), (3, 5, 2)),
    (nn.LogSoftmax(), torch.nn.LogSoftmax(-1), (3, 5)),
    (nn.LogSoftmax(0), torch.nn.LogSoftmax(0), (3, 5)),
    (nn.Identity(), torch.nn.Identity(), (3, 5)),
    (nn.Flatten(), torch.nn.Flatten(), (3, 5, 2)),
    (nn.Dropout(0.0), torch.nn.Dropout(0.0), (3, 5)),
    *[
        (
            nn.TransformerEncoderLayer(12, 3, 20, 0.0, activation, norm_first=first),
            torch.nn.TransformerEncoderLayer(12, 3, 20, 0.0, activation, batch_first=True, norm_first=first),
            (2, 5, 12),
        )
        for activation in ("relu", "gelu")
        for first in (True, False)
    ],
]
NAMES = [f"{i}-{type(ours).__name__}" for i, (ours, _, _) in enumerate(TWINS)]


@pytest.mark.parametrize(("ours", "plain", "shape"), TWINS, ids=NAMES)
def test_a_twin_of_torch_s_module(ours: Any, plain: Any, shape: tuple[int, ...]) -> None:
    """State dicts interchange, and results and gradients are those of torch in binary64, up to rounding."""
    nn.init_(ours, seed=3)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    plain.load_state_dict(ours.state_dict())
    ours.load_state_dict(plain.state_dict())
    exact, x = plain.double(), batch(*shape)
    x64 = x.double().requires_grad_()
    x.requires_grad_()
    grad = batch(*ours(x).shape, seed=2)
    torch.autograd.backward(ours(x), grad)
    torch.autograd.backward(exact(x64), grad.double())
    torch.testing.assert_close(ours(x).double(), exact(x64), rtol=1e-5, atol=1e-5)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    for (name, p), (_, q) in zip(ours.named_parameters(), exact.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_embedding_is_a_twin_too() -> None:
    ours, plain = nn.init_(nn.Embedding(9, 4, padding_idx=-2), seed=3), torch.nn.Embedding(9, 4, padding_idx=-2)
    assert torch.equal(ours.get_parameter("weight")[7], torch.zeros(4))
    plain.load_state_dict(ours.state_dict())
    indices = torch.tensor([[1, 7], [8, 1]])
    assert torch.equal(ours(indices), plain(indices))


def test_batch_norm_moves_torch_s_buffers() -> None:
    """As torch in binary64 up to rounding, and as the operator bitwise; only batches that were normed are counted."""
    ours, plain, x = nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3).double(), batch(2, 3, 7, 5)
    mean, var = torch.zeros(3), torch.ones(3)
    for _ in range(2):
        expected = samebits.batch_norm(x, mean, var, torch.ones(3), torch.zeros(3), True)
        assert_same_bits(ours(x), expected)
        plain(x.double())
    with pytest.raises(ValueError, match=r"^batch_norm: more than one value"):
        ours(batch(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r"^BatchNorm1d: x must be \[B, C\] or \[B, C, L\], not "):
        nn.BatchNorm1d(3)(x)
    with pytest.raises(ValueError, match=r"^BatchNorm2d: x must be \[B, C, H, W\], not "):
        ours(batch(2, 3))
    assert_same_bits(ours.running_mean, mean)
    assert_same_bits(ours.running_var, var)
    assert ours.get_buffer("num_batches_tracked").item() == plain.get_buffer("num_batches_tracked").item() == 2
    torch.testing.assert_close(ours.running_var.double(), plain.running_var, rtol=1e-6, atol=1e-6)
    ours.eval()(x)
    assert ours.num_batches_tracked.item() == 2


def test_modules_are_compositions_of_the_operators() -> None:
    block = nn.init_(nn.TransformerEncoderLayer(12, 3, 20, 0.0, "gelu", norm_first=True, causal=True), seed=1)
    p, x = dict(block.named_parameters()), batch(2, 5, 12)
    normed = samebits.layer_norm(x, p["norm1.weight"], p["norm1.bias"], 1e-5)
    qkv, out = (
        (p["self_attn.in_proj_weight"], p["self_attn.in_proj_bias"]),
        (
            p["self_attn.out_proj.weight"],
            p["self_attn.out_proj.bias"],
        ),
    )
    y = samebits.add(x, samebits.multihead_attention(normed, *qkv, *out, 3, causal=True))
    normed = samebits.layer_norm(y, p["norm2.weight"], p["norm2.bias"], 1e-5)
    hidden = samebits.gelu(samebits.linear(normed, p["linear1.weight"], p["linear1.bias"]))
    expected = samebits.add(y, samebits.linear(hidden, p["linear2.weight"], p["linear2.bias"]))
    assert_same_bits(block(x), expected)
    mlp = nn.init_(nn.MLP(12, 7), seed=1)
    p = dict(mlp.named_parameters())
    hidden = samebits.gelu(samebits.linear(x, p["up.weight"], p["up.bias"]))
    assert_same_bits(mlp(x), samebits.linear(hidden, p["down.weight"], p["down.bias"]))
    gated = nn.init_(nn.SwiGLU(12, 7), seed=1)
    w = dict(gated.named_parameters())
    gate, up = samebits.silu(samebits.linear(x, w["gate.weight"])), samebits.linear(x, w["up.weight"])
    assert_same_bits(gated(x), samebits.linear(samebits.mul(gate, up), w["down.weight"]))
    residual = nn.Residual(mlp)
    assert_same_bits(residual(x), samebits.add(x, mlp(x)))


@pytest.mark.parametrize("bias", [True, False])
def test_attention_with_grouped_queries_and_rotary(bias: bool) -> None:
    layer = nn.init_(nn.MultiheadAttention(12, 6, bias, causal=True, num_kv_heads=2, rotary_base=100.0), seed=1)
    p, x = dict(layer.named_parameters()), batch(2, 5, 12)
    assert p["in_proj_weight"].shape == (20, 12)
    first, last = (p["in_proj_weight"], p.get("in_proj_bias")), (p["out_proj.weight"], p.get("out_proj.bias"))
    options: dict[str, Any] = {"causal": True, "num_kv_heads": 2, "rotary_base": 100.0}
    assert_same_bits(layer(x), samebits.multihead_attention(x, *first, *last, 6, **options))
    mask = torch.arange(5).ge(2).view(1, 1, 1, 5)
    assert_same_bits(layer(x, mask), samebits.multihead_attention(x, *first, *last, 6, mask=mask, **options))
    with pytest.raises(ValueError, match=r"^MultiheadAttention: 6 heads cannot share 4 heads of keys"):
        nn.MultiheadAttention(12, 6, num_kv_heads=4)


def test_a_residual_sums_its_gradients_in_order() -> None:
    x, grad = batch(3, 4).requires_grad_(), batch(3, 4, seed=2)
    body = nn.init_(nn.Linear(4, 4), seed=1)
    (made,) = torch.autograd.grad(nn.Residual(body)(x), x, grad)
    (inner,) = torch.autograd.grad(body(x), x, grad)
    assert_same_bits(made, samebits.add(grad, inner))


def test_parameters_begin_by_their_path_and_seed() -> None:
    def model() -> torch.nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Residual(nn.MLP(6, 8)), nn.MultiheadAttention(6, 2))

    first, second = nn.init_(model(), seed=5), nn.init_(model(), seed=5)
    torch.rand(3)  # torch's generator has no part in it
    assert samebits.digest(dict(first.state_dict())) == samebits.digest(dict(second.state_dict()))
    assert samebits.digest(dict(nn.init_(model(), 6).state_dict())) != samebits.digest(dict(first.state_dict()))
    expected = uniform((6, 4), -0.5, 0.5, seed=5, site=site("0.weight"))
    assert_same_bits(first.get_parameter("0.weight"), expected)
    part = nn.init_(nn.MLP(6, 8), seed=5, prefix="2.body")
    assert_same_bits(part.get_parameter("up.weight"), first.get_parameter("2.body.up.weight"))
    assert not first.get_parameter("3.out_proj.bias").any()


def test_what_was_not_begun_is_seen() -> None:
    assert nn.Linear(2, 3)(torch.ones(1, 2)).isnan().all()
    strange = nn.Sequential(nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"^init_: nothing says how these parameters begin: 1\.0\.weight, 1\.0\.bias$"):
        nn.init_(strange, seed=1)


def dropping() -> torch.nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.25, activation="gelu", norm_first=True)
    return nn.init_(nn.Sequential(layer, nn.Dropout(0.5), nn.Linear(8, 3)), seed=2)


def test_microbatches_with_dropout_equal_the_whole_batch() -> None:
    x, grad, whole, parts = batch(6, 5, 8), batch(6, 5, 3, seed=2), dropping(), dropping()
    nn.place_(whole, seed=9, step=4)
    torch.autograd.backward(whole(x), grad)
    for i in range(0, 6, 2):
        nn.place_(parts, seed=9, step=4, sample=i)
        torch.autograd.backward(parts(x[i : i + 2]), grad[i : i + 2])
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert_same_bits(p.grad, q.grad)


def test_dropout_must_know_its_place() -> None:
    model = dropping()
    with pytest.raises(RuntimeError, match=r"^Dropout: call samebits.nn.place_"):
        model(batch(2, 5, 8))
    once = nn.place_(model, seed=1, step=0)(batch(2, 5, 8))
    assert_same_bits(model(batch(2, 5, 8)), once)
    assert not torch.equal(nn.place_(model, seed=1, step=1)(batch(2, 5, 8)), once)
    plain = model.eval()(batch(2, 5, 8))
    assert_same_bits(nn.place_(model, seed=1, step=2)(batch(2, 5, 8)), plain)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"^LayerNorm: only the last axis can be normalised, not \[2, 3\]"):
        nn.LayerNorm([2, 3])
    with pytest.raises(ValueError, match=r"^MultiheadAttention: 7 features cannot be cut into 2 heads"):
        nn.MultiheadAttention(7, 2)
    with pytest.raises(ValueError, match=r"^Dropout: p must be within"):
        nn.Dropout(2.0)
    with pytest.raises(ValueError, match=r"^TransformerEncoderLayer: activation must be relu or gelu"):
        nn.TransformerEncoderLayer(4, 2, activation="silu")


def test_a_weight_changed_between_forward_and_backward_is_noticed() -> None:
    layer = nn.init_(nn.Linear(2, 3), seed=1)
    out = layer(batch(1, 2).requires_grad_())
    with torch.no_grad():
        layer.get_parameter("weight").mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(out.sum())
