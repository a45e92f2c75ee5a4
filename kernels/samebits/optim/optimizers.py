"""SGD, Adam and AdamW as one compiled pass over each parameter, by graphs that fix every bit.

Scalars are computed in binary64 with `+ - * /`, `math.sqrt` and square-and-multiply, then rounded to binary32 once.
They are read from `param_groups` at every step, so that a schedule may change them. Parameters without a gradient are
skipped. Weights and gradients must be float32 tensors on the CPU, weights contiguous.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._check import require, require_tensor
from samebits._compile import Kernel
from samebits._split import split
from samebits.optim import _steps
from samebits.optim._scalars import adam_scalars, checked


def with_gradients(operator: str, parameters: Iterable[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    """The parameters that have a gradient, with it; both checked."""
    for p in parameters:
        if p.grad is None:
            continue
        require_tensor(operator, "parameter", p)
        require_tensor(operator, "gradient", p.grad)
        yield p, p.grad


def changed(*tensors: Tensor) -> None:
    """Tell autograd that memory was written, so that a backward that still needs the old values raises."""
    for tensor in tensors:
        torch.autograd.graph.increment_version(tensor)


# torch wraps some methods to keep its compiler out of them; the first call of one imports that compiler, two seconds.
_add_param_group: Any = inspect.unwrap(torch.optim.Optimizer.add_param_group)


class _Optimizer(torch.optim.Optimizer):
    """What all share: the step over all groups."""

    name: str
    zero_grad: Any = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict: Any = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """torch's, but bfloat16 parameters are refused: a step is often smaller than their last place."""
        _add_param_group(self, param_group)
        if any(p.dtype is torch.bfloat16 for p in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise TypeError(
                f"{self.name}: parameter must be torch.float32, not torch.bfloat16; "
                "operators take float32 parameters beside bfloat16 activations"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient; the closure, if any, computes the loss again first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p, grad in with_gradients(self.name, group["params"]):
                require(p.is_contiguous(), self.name, "parameters must be contiguous")
                self._update(p, grad.contiguous(), group)
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
        checked("SGD", 0.0, math.inf, lr=lr, momentum=momentum, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        momentum, decay, minus_lr = (np.float32(group[n]) for n in ("momentum", "weight_decay", "lr"))
        minus_lr, state, size = -minus_lr, self.state[p], p.numel()
        if momentum == 0.0:
            split(_steps.sgd, size, 1, p.data_ptr(), grad.data_ptr(), decay, minus_lr)
            changed(p)
            return
        fresh = state.get("momentum_buffer") is None
        if fresh:
            state["momentum_buffer"] = torch.empty(p.shape, dtype=torch.float32)
        buffer = state["momentum_buffer"]
        pointers = (p.data_ptr(), grad.data_ptr(), buffer.data_ptr())
        if fresh:
            split(_steps.sgd_first, size, 1, *pointers, decay, minus_lr)
        else:
            split(_steps.sgd_momentum, size, 1, *pointers, momentum, decay, minus_lr)
        changed(p, buffer)


class _Moments(_Optimizer):
    """What Adam and AdamW share: two moments of each gradient and a count of steps."""

    kernel: Kernel

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        checked(self.name, 0.0, math.inf, lr=lr, eps=eps, weight_decay=weight_decay)
        checked(self.name, 0.0, 1.0, beta1=betas[0], beta2=betas[1])
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            m, v = (torch.zeros(p.shape, dtype=torch.float32) for _ in range(2))
            state.update(step=0, exp_avg=m, exp_avg_sq=v)
        state["step"] += 1
        m, v = state["exp_avg"], state["exp_avg_sq"]
        scalars = (np.float32(self._decay(group)), *adam_scalars(group, state["step"]))
        split(self.kernel, p.numel(), 1, p.data_ptr(), grad.data_ptr(), m.data_ptr(), v.data_ptr(), *scalars)
        changed(p, m, v)

    def _decay(self, group: dict[str, Any]) -> float:
        """The kernel's scalar for weight decay, in binary64."""
        raise NotImplementedError


class Adam(_Moments):
    """Adam, with weight decay added to the gradient. State: "exp_avg" (m), "exp_avg_sq" (v), "step" (t, an int).

    h = fma(weight_decay, p, g), or g itself if weight_decay is 0; m = fma(h, 1 - beta1, m * beta1);
    v = v * beta2 + (h * h) * (1 - beta2); d = sqrt(v) / sqrt(1 - beta2**t) + eps;
    p = p + (m / d) * (-lr / (1 - beta1**t)).
    Binary32 throughout, two roundings for a product and a sum unless it says fma; each scalar rounded once. The order
    of operations is that of RepDL's example (arXiv 2510.09180), whose published digests depend on it.
    """

    name, kernel = "Adam", _steps.adam

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def _decay(self, group: dict[str, Any]) -> float:
        return float(group["weight_decay"])


class AdamW(_Moments):
    """Adam with decoupled weight decay. State: "exp_avg" (m), "exp_avg_sq" (v), "step" (t, an int).

    p = p * binary32(1 - lr * weight_decay); m = fma(g, 1 - beta1, m * beta1); v = v * beta2 + (g * g) * (1 - beta2);
    d = sqrt(v) / sqrt(1 - beta2**t) + eps; p = p + (m / d) * (-lr / (1 - beta1**t)).
    Binary32 throughout, two roundings for a product and a sum unless it says fma; each scalar rounded once.
    """

    name, kernel = "AdamW", _steps.adamw

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def _decay(self, group: dict[str, Any]) -> float:
        return 1.0 - float(group["lr"]) * float(group["weight_decay"])
