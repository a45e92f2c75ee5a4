"""A LeNet-5 of plain torch modules converts, and computes and trains as the operators composed by hand do, bitwise."""

from __future__ import annotations

from typing import Any

import pytest
import samebits
import torch
from kernels_bits import assert_same_bits, floats
from torch import Tensor, nn
from torch.nn import functional

TARGET = torch.tensor([3, 0, 9])
RATE = 0.05


def batch(*shape: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(floats(seed, "plain", *shape))


def lenet() -> nn.Sequential:
    first = (nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(6, 16, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(
        *first, *second, nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
    )


class LeNet(nn.Module):
    """The same as users write it, with functions for what has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), (2, 2))
        x = functional.max_pool2d(torch.relu(self.conv2(x)), 2, stride=2)
        x = x.view(x.size(0), -1)
        x = functional.relu(self.fc1(x))
        out: Tensor = self.fc3(self.fc2(x).relu())
        return out


def by_hand(p: list[Tensor], x: Tensor) -> Tensor:
    x = samebits.max_pool2d(samebits.relu(samebits.conv2d(x, p[0], p[1], padding=2)), 2)
    x = samebits.max_pool2d(samebits.relu(samebits.conv2d(x, p[2], p[3])), 2)
    x = samebits.relu(samebits.linear(x.flatten(1), p[4], p[5]))
    return samebits.linear(samebits.relu(samebits.linear(x, p[6], p[7])), p[8], p[9])


def begun(module: Any) -> list[Tensor]:
    """Copies of the module's parameters, which are first given values that do not come from torch's generator."""
    for i, parameter in enumerate(module.parameters()):
        with torch.no_grad():
            parameter.copy_(batch(*parameter.shape, seed=5 + i) * 0.1)
    return [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]


@pytest.mark.parametrize("make", [lenet, LeNet])
def test_a_lenet_trains_as_the_composition_by_hand(make: Any, shared_out: None) -> None:
    module = make()
    parameters, twin, x = begun(module), samebits.convert(module), batch(3, 1, 28, 28)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in module.parameters()]
    torch.testing.assert_close(twin(x).double(), make_double(module)(x.double()), rtol=1e-4, atol=1e-5)
    ours, theirs = (samebits.optim.SGD(held, lr=RATE) for held in (twin.parameters(), parameters))
    for _ in range(2):
        result, expected = twin(x), by_hand(parameters, x)
        assert_same_bits(result, expected)
        for optimizer, logits in ((ours, result), (theirs, expected)):
            optimizer.zero_grad()
            torch.autograd.backward(samebits.cross_entropy(logits, TARGET))
            optimizer.step()
    for made, wanted in zip(module.parameters(), parameters, strict=True):
        assert_same_bits(made, wanted)


def make_double(module: nn.Module) -> nn.Module:
    """A copy in binary64, for the module's own parameters are the twin's."""
    copy = type(module)() if isinstance(module, LeNet) else lenet()
    copy.load_state_dict(module.state_dict())
    return copy.double()


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4, 1e-3, 0.3), nn.AvgPool2d(2, 1), nn.Flatten())


def test_a_converted_batch_norm_shares_its_buffers() -> None:
    module, x = normed(), batch(2, 2, 6, 5)
    (kernel, weight, bias), twin = begun(module), samebits.convert(module)
    mean, var = torch.zeros(4), torch.ones(4)
    for training in (True, True, False):
        twin.train(training)
        inner = samebits.batch_norm(samebits.conv2d(x, kernel), mean, var, weight, bias, training, 0.3, 1e-3)
        assert_same_bits(twin(x), samebits.avg_pool2d(inner, 2, 1).flatten(1))
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 2
    assert_same_bits(norm.get_buffer("running_mean"), mean)
    assert_same_bits(norm.get_buffer("running_var"), var)
    assert twin.state_dict().keys() == module.state_dict().keys()


def test_batch_norm_inside_a_forward_of_ones_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = normed()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.flatten(functional.avg_pool2d(self.body[1](self.body[0](x)), 2, stride=1), 1)
            return out

    own, module, x = Own(), normed(), batch(2, 2, 6, 5)
    begun(own), begun(module)
    twin, expected = samebits.convert(own), samebits.convert(module)
    assert_same_bits(twin(x), expected(x))
    assert_same_bits(own.get_buffer("body.1.running_var"), module.get_buffer("1.running_var"))
    assert twin.state_dict().keys() == own.state_dict().keys()


class Gated(nn.Module):
    """Products, sums and means in a forward of one's own, and parameters that scale and shift."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate = nn.RMSNorm(5), nn.Sequential(nn.Linear(5, 5), nn.SiLU())
        self.scale, self.shift = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = self.gate(h) * functional.silu(h) * self.scale + self.shift
        out: Tensor = (2.0 * torch.sigmoid(h)).mean(dim=(1, 2)) + 1.0 + h.sum(-1).sum(1)
        return out


def gated_by_hand(p: list[Tensor], x: Tensor) -> Tensor:
    scale, shift, norm, weight, bias = p
    first, second = samebits.fork(samebits.rms_norm(x, norm, 2.0**-23), 2)
    product = samebits.mul(samebits.silu(samebits.linear(first, weight, bias)), samebits.silu(second))
    one, two = samebits.fork(samebits.add(samebits.mul(product, scale), shift), 2)
    mean = samebits.mean(samebits.mul(samebits.sigmoid(one), 2.0), (1, 2))
    return samebits.add(samebits.add(mean, 1.0), samebits.sum(samebits.sum(two, -1), 1))


def test_products_and_sums_in_a_forward_are_the_composition_by_hand() -> None:
    """In microbatches too, so that the chains of parameters that scale and shift are one."""
    module, x, grad = Gated(), batch(4, 3, 5), batch(4, seed=2)
    parameters, twin = begun(module), samebits.convert(module)
    torch.autograd.backward(gated_by_hand(parameters, x), grad)
    assert_same_bits(twin(x), gated_by_hand(parameters, x))
    for i in (0, 1):
        torch.autograd.backward(twin(x[2 * i : 2 * i + 2]), grad[2 * i : 2 * i + 2])
    for made, wanted in zip(module.parameters(), parameters, strict=True):
        assert made.grad is not None
        assert wanted.grad is not None
        assert_same_bits(made.grad, wanted.grad)
    torch.testing.assert_close(twin(x).double(), module.double()(x.double()), rtol=1e-4, atol=1e-5)
