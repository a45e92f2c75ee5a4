"""SGD, Adam and AdamW equal their plain loops bit for bit over several steps and rates, and behave as torch's do."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds
from samebits.optim import SGD, Adam, AdamW, power
from samebits.reference import optim as reference
from samebits.reference.scalar import F32

SHAPES = st.sampled_from([(), (0,), (1,), (7,), (16,), (3, 11), (2, 3, 5)])
RATES = st.sampled_from([0.0, 1e-3, 0.1, 1.0])
QUIET = np.errstate(all="ignore")
FEW = settings(deadline=None, max_examples=60)
STEPS = 3


def parameter(seed: int, flavour: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.array(floats(seed, flavour, *shape))).requires_grad_()


@given(SHAPES, RATES, st.sampled_from([0.0, 0.5, 0.9]), RATES, seeds(), flavours())
@FEW
@QUIET
def test_sgd(shape: tuple[int, ...], lr: float, momentum: float, decay: float, seed: int, flavour: str) -> None:
    p = parameter(seed, flavour, shape)
    expected: Any = p.detach().numpy().copy()
    buffers: list[Any] = [None] * p.numel()
    optimizer = SGD([p], lr=lr, momentum=momentum, weight_decay=decay)
    for step in range(STEPS):
        rate = optimizer.param_groups[0]["lr"] = lr / (step + 1)
        p.grad = parameter(seed + step + 1, flavour, shape).detach()
        optimizer.step()
        for i, index in enumerate(np.ndindex(shape)):
            old = buffers[i] if momentum else None
            g: Any = p.grad.numpy()[index]
            expected[index], buffers[i] = reference.sgd(expected[index], g, old, rate, momentum, decay)
        assert_same_bits(p, expected)


@pytest.mark.parametrize(("kind", "dumb"), [(Adam, reference.adam), (AdamW, reference.adamw)])
@given(SHAPES, RATES, st.sampled_from([(0.9, 0.999), (0.0, 0.5), (0.9, 0.0)]), RATES, seeds(), flavours())
@FEW
@QUIET
def test_adam_and_adamw(
    kind: Any,
    dumb: Any,
    shape: tuple[int, ...],
    lr: float,
    betas: tuple[float, float],
    decay: float,
    seed: int,
    flavour: str,
) -> None:
    p, eps = parameter(seed, flavour, shape), 1e-8
    zero = F32(0.0)
    start: Any = p.detach().numpy()
    expected = {index: reference.Adam(start[index], zero, zero) for index in np.ndindex(shape)}
    optimizer = kind([p], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    for step in range(1, STEPS + 1):
        rate = optimizer.param_groups[0]["lr"] = lr / step
        p.grad = parameter(seed + step, flavour, shape).detach()
        optimizer.step()
        gradient: Any = p.grad.numpy()
        for index, old in expected.items():
            expected[index] = dumb(old, gradient[index], step, rate, betas, eps, decay)
    state = optimizer.state[p]
    for position, tensor in enumerate((p, state["exp_avg"], state["exp_avg_sq"])):
        values = np.empty(shape, np.float32)
        for index, element in expected.items():
            values[index] = element[position]
        assert_same_bits(tensor, values)
    assert state["step"] == STEPS
    assert type(state["step"]) is int


@given(st.floats(0.0, 1.0), st.integers(0, 10_000))
@settings(deadline=None, max_examples=200)
def test_power(base: float, exponent: int) -> None:
    assert power(base, exponent) == reference.power(base, exponent)
    assert power(base, 0) == 1.0
    assert power(base, 3) == base * base * base


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_threads_change_nothing(kind: Any, shared_out: None) -> None:
    results = []
    for threads in (1, 2):
        samebits.set_num_threads(threads)
        p = parameter(1, "plain", (1031,))
        optimizer = kind([p], lr=0.1, weight_decay=0.1)
        for step in range(STEPS):
            p.grad = parameter(step, "plain", (1031,)).detach()
            optimizer.step()
        results.append(p)
    assert_same_bits(*results)


@pytest.mark.parametrize(("kind", "more"), [(SGD, {"momentum": 0.9}), (Adam, {}), (AdamW, {})])
def test_state_dict_goes_on_with_the_same_bits(kind: Any, more: dict[str, float]) -> None:
    def run(steps: int, p: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            p.grad = p.detach() * 0.5
            optimizer.step()

    p = parameter(1, "plain", (5,))
    optimizer = kind([p], lr=0.1, **more)
    run(2, p, optimizer)
    q = p.detach().clone().requires_grad_()
    other = kind([q], lr=0.5, **more)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(2, p, optimizer)
    run(2, q, other)
    assert_same_bits(p, q)


@pytest.mark.parametrize(
    ("kind", "plain", "more"),
    [(SGD, torch.optim.SGD, {"momentum": 0.9}), (Adam, torch.optim.Adam, {}), (AdamW, torch.optim.AdamW, {})],
)
def test_it_is_the_same_algorithm_as_torch_s(kind: Any, plain: Any, more: dict[str, float]) -> None:
    ours, exact = parameter(1, "plain", (50,)), parameter(1, "plain", (50,)).detach().double().requires_grad_()
    for p, made in ((ours, kind), (exact, plain)):
        optimizer = made([p], lr=0.05, weight_decay=0.1, **more)
        for step in range(20):
            p.grad = torch.from_numpy(floats(step, "plain", 50)).to(p.dtype)
            optimizer.step()
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


def test_closure_missing_gradients_and_versions() -> None:
    p, q = parameter(1, "plain", (3,)), parameter(2, "plain", (3,))
    before = q.detach().clone()
    optimizer = SGD([p, q], lr=0.1)

    def closure() -> float:
        loss = (p * p).sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) is not None
    assert torch.equal(q, before)
    y = (p * p).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_bad_arguments() -> None:
    p = parameter(1, "plain", (3,))
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^SGD: lr must be finite, at least 0"):
            SGD([p], lr=bad)
        with pytest.raises(ValueError, match=r"^AdamW: eps must be finite"):
            AdamW([p], eps=bad)
    with pytest.raises(ValueError, match=r"^AdamW: beta2 must be finite, at least 0 and below 1, not 1.0"):
        AdamW([p], betas=(0.9, 1.0))
    double = torch.ones(2, dtype=torch.float64, requires_grad=True)
    double.grad = torch.ones_like(double)
    with pytest.raises(TypeError, match=r"^SGD: parameter must be torch.float32, not torch.float64"):
        SGD([double], lr=0.1).step()
    strided = torch.ones(3, 2).T.requires_grad_()
    strided.grad = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"^AdamW: parameters must be contiguous"):
        AdamW([strided]).step()


def test_an_optimizer_does_not_bring_torchs_compiler() -> None:
    program = (
        "import sys, samebits, torch; p = torch.zeros(3, requires_grad=True); p.grad = torch.ones(3); "
        "o = samebits.optim.AdamW([p]); o.step(); o.zero_grad(); o.load_state_dict(o.state_dict()); "
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=110, check=True)
    assert done.stdout == "False\n"
