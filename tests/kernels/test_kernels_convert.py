"""A converted module computes with samebits alone, on the same parameters, and trains by the contract."""

from __future__ import annotations

from typing import Any

import pytest
import samebits
import torch
from convert_models import Block, Mixed, Model, Spelled
from kernels_bits import assert_same_bits, floats
from samebits import nn
from samebits.convert import _nodes, _rewrite, _rules
from torch import Tensor, fx

INDICES = torch.arange(12).view(3, 4) % 11


def batch(*shape: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(floats(seed, "plain", *shape))


def filled(module: torch.nn.Module, seed: int = 5) -> Any:
    """The module with parameters that do not come from torch's generator."""
    for i, parameter in enumerate(module.parameters()):
        with torch.no_grad():
            parameter.copy_(batch(*parameter.shape, seed=seed + i) * 0.3)
    return module


plain = torch.nn
LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (plain.Linear(5, 7), (3, 5)),
    (plain.Linear(5, 7, bias=False), (3, 5)),
    (plain.LayerNorm(5), (3, 5)),
    (plain.Sequential(plain.Linear(5, 4), plain.Sequential(plain.ReLU(inplace=True), plain.Tanh())), (3, 5)),
    (plain.Sequential(plain.Flatten(), plain.GELU(), plain.Identity(), plain.Softmax(-1)), (3, 5, 2)),
    (plain.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True), (2, 3, 8)),
    (plain.TransformerEncoderLayer(8, 2, 12, 0.0, plain.ReLU(), batch_first=True, norm_first=True), (2, 3, 8)),
    (
        plain.TransformerEncoder(
            plain.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True), 2, plain.LayerNorm(8), False
        ),
        (2, 3, 8),
    ),
    (Block().eval(), (2, 3, 8)),
    (Mixed(), (3, 5)),
    (Spelled(), (3, 2, 4, 5)),
    (plain.Sequential(plain.LogSoftmax(0), plain.Softmax(1), plain.BatchNorm1d(5).eval()), (3, 5)),
]


@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=[f"{i}" for i in range(len(LAYERS))])
def test_it_is_the_same_function_on_the_same_parameters(module: Any, shape: tuple[int, ...]) -> None:
    filled(module)
    twin, x = samebits.convert(module), batch(*shape)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in module.parameters()]
    assert twin.state_dict().keys() == module.state_dict().keys()
    assert twin.training == module.training
    result = twin(x)
    torch.testing.assert_close(result.double(), module.double()(x.double()), rtol=1e-4, atol=1e-5)


def test_a_forward_of_ones_own_is_the_composition_by_hand() -> None:
    module = filled(Block().eval())
    p, x = dict(module.named_parameters()), batch(2, 3, 8)
    normed = samebits.layer_norm(x, p["norm1.weight"], p["norm1.bias"], 1e-5)
    q, k, v = samebits.linear(normed, p["qkv.weight"], p["qkv.bias"]).chunk(3, dim=-1)
    q, k, v = (part.view(2, 3, 2, 4).transpose(1, 2) for part in (q, k, v))
    seen = samebits.attention(q, k, v, causal=True)
    y = samebits.add(x, samebits.linear(seen.transpose(1, 2).reshape(2, 3, 8), p["out.weight"], p["out.bias"]))
    normed = samebits.layer_norm(y, p["norm2.weight"], p["norm2.bias"], 1e-5)
    hidden = samebits.gelu(samebits.linear(normed, p["mlp.0.weight"], p["mlp.0.bias"]))
    expected = samebits.add(y, samebits.linear(hidden, p["mlp.3.weight"], p["mlp.3.bias"]))
    assert_same_bits(samebits.convert(module)(x), expected)


def test_a_converted_graph_computes_with_samebits_alone() -> None:
    """Whatever is called belongs to samebits, moves elements, or asks about shapes."""
    own = {rule.function for rule in _rules.RULES.values()} | {_rewrite.fan_out, torch.ops}
    for module in (Block(), Model(), Mixed(), Spelled()):
        twin = samebits.convert(module)
        assert isinstance(twin, fx.GraphModule)
        for node in twin.graph.nodes:
            if node.op in ("call_function", "call_method"):
                moves = node.target in _rules.MOVES or node.target in (getattr, fx.node._side_effectful_functions)
                assert moves or node.target in own or node.target.__name__ == "getitem"
        for part in twin.modules():
            kind = type(part)
            assert (
                kind.__module__.startswith("samebits.") or isinstance(part, fx.GraphModule) or kind is torch.nn.Module
            )


def test_every_value_that_is_used_twice_is_forked() -> None:
    twin = samebits.convert(Model())
    assert isinstance(twin, fx.GraphModule)
    forks = [node for node in twin.graph.nodes if node.target is _rewrite.fan_out]
    assert len(forks) == 4
    for node in twin.graph.nodes:
        if node.op == "call_module":
            assert len([user for user in node.users if not _nodes.asks(user)]) <= 1


def train(model: Any, steps: int, cuts: int) -> dict[str, Tensor]:
    """Adam on the converted model, the batch in `cuts` microbatches."""
    twin = samebits.convert(model)
    optimizer = samebits.optim.Adam(twin.parameters(), lr=0.01)
    target, rows = torch.tensor([0, 2, 1, 1, 0, 2]), torch.arange(24).view(6, 4) * 7 % 11
    for step in range(steps):
        optimizer.zero_grad()
        for i in range(0, 6, 6 // cuts):
            nn.place_(twin, seed=3, step=step, sample=i)
            part = slice(i, i + 6 // cuts)
            torch.autograd.backward(samebits.cross_entropy(twin(rows[part]), target[part], count=6))
        samebits.optim.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
    return dict(model.state_dict())


def test_training_is_the_same_in_microbatches_and_with_two_threads(shared_out: None) -> None:
    whole = train(filled(Model()), steps=4, cuts=1)
    samebits.set_num_threads(1)
    parts = train(filled(Model()), steps=4, cuts=3)
    assert samebits.digest(whole) == samebits.digest(parts)
    assert samebits.digest(whole) != samebits.digest(dict(filled(Model()).state_dict()))


def test_functions_spelled_with_parameters_are_the_composition_by_hand_in_microbatches_too(shared_out: None) -> None:
    module, x = filled(Spelled()), batch(4, 2, 4, 5)
    twin, p = samebits.convert(module), [parameter.detach().clone() for parameter in module.parameters()]
    gain, shift, scale, kernel = (parameter.requires_grad_() for parameter in p)
    y = samebits.rms_norm(samebits.layer_norm(x, gain, shift, 1e-3), scale, 2.0**-23)
    y = samebits.mul(samebits.add(y, -x), -1.0)
    z = samebits.conv2d(samebits.div(samebits.add(y, 1.0), 3), kernel, padding=(1, 0), stride=2)
    left, right, above = samebits.fork(z, 3)
    below = samebits.div(torch.tensor(2.0), samebits.add(samebits.mul(left, right), 1.0))
    first, second = samebits.fork(samebits.div(above, below), 2)
    first = samebits.log_softmax(samebits.add(first, -0.5).flatten(2), 1)
    second = samebits.softmax(samebits.mul(second, -1.0).flatten(2), -1)
    expected = samebits.add(samebits.mul(first, -1.0), samebits.mul(second, -1.0))
    assert_same_bits(twin(x), expected)
    assert_same_bits(expected, samebits.add(-first, -second))
    grad = batch(*expected.shape, seed=2)
    torch.autograd.backward(expected, grad)
    for begin in (0, 2):
        torch.autograd.backward(twin(x[begin : begin + 2]), grad[begin : begin + 2])
    for made, wanted in zip(module.parameters(), (gain, shift, scale, kernel), strict=True):
        assert made.grad is not None
        assert wanted.grad is not None
        assert_same_bits(made.grad, wanted.grad)


class Strided(plain.Module):
    """conv2d with a parameter of one's own, and some of the arguments."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.kernel, self.given = plain.Parameter(torch.full((3, 2, 2, 2), 0.25)), given

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 2, H, W]."""
        return torch.conv2d(x, self.kernel, **self.given)


@pytest.mark.parametrize("given", [{}, {"padding": 1}, {"dilation": 2}, {"stride": 2, "groups": 1}])
def test_an_argument_that_is_left_out_before_one_that_is_given_has_its_default(given: dict[str, Any]) -> None:
    module, x = Strided(**given), batch(3, 2, 4, 5)
    assert_same_bits(samebits.convert(module)(x), samebits.conv2d(x, module.kernel, **given))


def test_training_learns() -> None:
    model = filled(Model())
    twin = samebits.convert(model).eval()
    target, rows = torch.tensor([0, 2, 1, 1, 0, 2]), torch.arange(24).view(6, 4) * 7 % 11
    before = samebits.cross_entropy(twin(rows), target).item()
    train(model, steps=60, cuts=1)
    after = samebits.cross_entropy(twin(rows), target).item()
    assert after < 0.5 * before


def test_causal_layers_see_no_later_position() -> None:
    layer = filled(plain.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True))
    twin, x = samebits.convert(layer, causal=True), batch(1, 5, 8)
    changed = x.clone()
    changed[:, 3:] = 1.0
    assert_same_bits(twin(x)[:, :3], twin(changed)[:, :3])
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(twin(x), layer(x, src_mask=mask), rtol=1e-4, atol=1e-5)


def test_what_is_converted_already_stays() -> None:
    layer = nn.Linear(2, 3)
    assert samebits.convert(layer) is layer
    mixed = samebits.convert(plain.Sequential(plain.Linear(4, 2), layer))
    assert mixed.get_submodule("1") is layer


def test_a_converted_embedding_keeps_its_padding() -> None:
    twin = samebits.convert(plain.Embedding(11, 4, padding_idx=2))
    torch.autograd.backward(twin(INDICES).sum())
    grad = twin.get_parameter("weight").grad
    assert grad is not None
    assert not grad[2].any()
    assert grad[3].all()


def test_the_module_given_is_left_alone() -> None:
    model = Model()
    model.blocks[0].eval()
    modes, before = [part.training for part in model.modules()], dict(model.named_modules())
    samebits.convert(model)
    assert [part.training for part in model.modules()] == modes
    assert dict(model.named_modules()) == before
