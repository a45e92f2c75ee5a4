"""SGD and AdamW as one compiled pass over each parameter, by graphs that fix every bit.

Scalars are computed in binary64 with `+ - * /`, `math.sqrt` and square-and-multiply, then rounded to binary32 once.
They are read from `param_groups` at every step, so that a schedule may change them. Parameters without a gradient are
skipped. Weights and gradients must be contiguous float32 tensors on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._check import require, require_tensor
from samebits._compile import inlined, kernel
from samebits._intrinsics import fma32, load32, store32
from samebits._split import split

ZERO = np.float32(0.0)


@inlined()
def decayed(g: float, weight: float, decay: float) -> Any:
    """fma(decay, weight, g), but g itself without decay: 0 * weight would turn -0 into +0, and infinities into NaN."""
    return g if decay == ZERO else fma32(decay, weight, g)


@kernel("void(intp, intp, float32, float32, intp, intp)")
def _sgd(p: int, g: int, decay: float, minus_lr: float, begin: int, end: int) -> None:
    for i in range(begin, end):
        weight = load32(p, i)
        store32(p, i, fma32(minus_lr, decayed(load32(g, i), weight, decay), weight))


@kernel("void(intp, intp, intp, float32, float32, float32, intp, intp)")
def _sgd_momentum(
    p: int, g: int, buffer: int, momentum: float, decay: float, minus_lr: float, begin: int, end: int
) -> None:
    for i in range(begin, end):
        weight = load32(p, i)
        moved = fma32(momentum, load32(buffer, i), decayed(load32(g, i), weight, decay))
        store32(buffer, i, moved)
        store32(p, i, fma32(minus_lr, moved, weight))


@kernel("void(intp, intp, intp, float32, float32, intp, intp)")
def _sgd_first(p: int, g: int, buffer: int, decay: float, minus_lr: float, begin: int, end: int) -> None:
    for i in range(begin, end):
        weight = load32(p, i)
        moved = decayed(load32(g, i), weight, decay)
        store32(buffer, i, moved)
        store32(p, i, fma32(minus_lr, moved, weight))


@kernel("void(intp, intp, intp, intp, " + ", ".join(["float32"] * 8) + ", intp, intp)")
def _adamw(
    p: int, g: int, m: int, v: int, kept: float, beta1: float, rest1: float, beta2: float, rest2: float,
    root: float, eps: float, minus_size: float, begin: int, end: int,
) -> None:  # fmt: skip
    for i in range(begin, end):
        grad = load32(g, i)
        first = fma32(grad, rest1, load32(m, i) * beta1)
        second = load32(v, i) * beta2 + (grad * grad) * rest2
        store32(m, i, first)
        store32(v, i, second)
        d = math.sqrt(second) / root + eps
        store32(p, i, load32(p, i) * kept + (first / d) * minus_size)


def power(base: float, exponent: int) -> float:
    """base**exponent in binary64, by left-to-right square-and-multiply: a host's own power may round otherwise."""
    result = 1.0
    for bit in bin(exponent)[2:]:
        result = result * result
        if bit == "1":
            result = result * base
    return result


def _checked(operator: str, low: float, high: float, **numbers: float) -> None:
    """Raise ValueError unless each number is finite and low <= number < high."""
    for name, number in numbers.items():
        fits = math.isfinite(number) and low <= number < high
        require(fits, operator, f"{name} must be finite, at least {low:g} and below {high:g}, not {number}")


def _with_gradients(operator: str, parameters: Iterable[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    """The parameters that have a gradient, with it; both checked."""
    for p in parameters:
        if p.grad is None:
            continue
        require_tensor(operator, "parameter", p)
        require_tensor(operator, "gradient", p.grad)
        require(p.is_contiguous(), operator, "parameters must be contiguous")
        yield p, p.grad.contiguous()


def _changed(*tensors: Tensor) -> None:
    """Tell autograd that memory was written, so that a backward that still needs the old values raises."""
    for tensor in tensors:
        torch.autograd.graph.increment_version(tensor)


class _Optimizer(torch.optim.Optimizer):
    """What both share: the step over all groups."""

    name: str

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient; the closure, if any, computes the loss again first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p, grad in _with_gradients(self.name, group["params"]):
                self._update(p, grad, group)
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum.

    h = fma(weight_decay, p, g), or g itself if weight_decay is 0; buffer = fma(momentum, buffer, h), but the first
    buffer is h; p = fma(-lr, buffer, p). With momentum 0 there is no buffer: p = fma(-lr, h, p).
    State: "momentum_buffer".
    """

    name = "SGD"

    def __init__(self, params: Any, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        _checked("SGD", 0.0, math.inf, lr=lr, momentum=momentum, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        momentum, decay, minus_lr = (np.float32(group[n]) for n in ("momentum", "weight_decay", "lr"))
        minus_lr, state, size = -minus_lr, self.state[p], p.numel()
        if momentum == 0.0:
            split(_sgd, size, 1, p.data_ptr(), grad.data_ptr(), decay, minus_lr)
            _changed(p)
            return
        fresh = state.get("momentum_buffer") is None
        if fresh:
            state["momentum_buffer"] = torch.empty(p.shape, dtype=torch.float32)
        buffer = state["momentum_buffer"]
        pointers = (p.data_ptr(), grad.data_ptr(), buffer.data_ptr())
        if fresh:
            split(_sgd_first, size, 1, *pointers, decay, minus_lr)
        else:
            split(_sgd_momentum, size, 1, *pointers, momentum, decay, minus_lr)
        _changed(p, buffer)


class AdamW(_Optimizer):
    """Adam with decoupled weight decay. State: "exp_avg" (m), "exp_avg_sq" (v), "step" (t, an int).

    p = p * binary32(1 - lr * weight_decay); m = fma(g, 1 - beta1, m * beta1); v = v * beta2 + (g * g) * (1 - beta2);
    d = sqrt(v) / sqrt(1 - beta2**t) + eps; p = p + (m / d) * (-lr / (1 - beta1**t)).
    Binary32 throughout, two roundings for a product and a sum unless it says fma; each scalar rounded once.
    """

    name = "AdamW"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        _checked("AdamW", 0.0, math.inf, lr=lr, eps=eps, weight_decay=weight_decay)
        _checked("AdamW", 0.0, 1.0, beta1=betas[0], beta2=betas[1])
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            m, v = (torch.zeros(p.shape, dtype=torch.float32) for _ in range(2))
            state.update(step=0, exp_avg=m, exp_avg_sq=v)
        state["step"] += 1
        m, v = state["exp_avg"], state["exp_avg_sq"]
        scalars = _adamw_scalars(group, state["step"])
        split(_adamw, p.numel(), 1, p.data_ptr(), grad.data_ptr(), m.data_ptr(), v.data_ptr(), *scalars)
        _changed(p, m, v)


def _adamw_scalars(group: dict[str, Any], step: int) -> list[np.float32]:
    """The eight scalars of a step in the kernel's order: binary64, each rounded to binary32 once."""
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    kept = 1.0 - lr * group["weight_decay"]
    root = math.sqrt(1.0 - power(beta2, step))
    minus_size = -lr / (1.0 - power(beta1, step))
    exact = (kept, beta1, 1.0 - beta1, beta2, 1.0 - beta2, root, group["eps"], minus_size)
    return [np.float32(number) for number in exact]
