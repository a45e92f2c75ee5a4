"""A program that runs many operators, forward and backward, and prints the digest of every result: same everywhere.

Run as `python kernels_program.py`, with another processor named in NUMBA_CPU_NAME for instance; an argument `few`
leaves out what does not depend on the width of vectors.
"""

from __future__ import annotations

import json
import sys

import samebits
import torch
from kernels_bits import floats

SHAPES = [(1, 17, 5), (9, 64, 9), (33, 65, 49), (47, 300, 23), (8, 16, 96)]


def tensor(seed: int, *shape: int) -> torch.Tensor:
    """A leaf of ordinary values."""
    return torch.from_numpy(floats(seed, "plain", *shape)).requires_grad_()


def results(*, few: bool) -> dict[str, torch.Tensor]:
    """Every result by name."""
    made: dict[str, torch.Tensor] = {}

    def keep(name: str, out: torch.Tensor, *leaves: torch.Tensor) -> None:
        grads = torch.autograd.grad(out, leaves, torch.from_numpy(floats(len(made), "plain", *out.shape)))
        for i, result in enumerate((out.detach(), *grads)):
            made[f"{name}.{i}"] = result

    for m, k, n in SHAPES:
        a, b, w, bias = tensor(1, m, k), tensor(2, k, n), tensor(3, n, k), tensor(4, n)
        keep(f"matmul_{m}_{k}_{n}", samebits.matmul(a, b), a, b)
        keep(f"linear_{m}_{k}_{n}", samebits.linear(a, w, bias), a, w, bias)
    for causal in (False, True):
        q, k4, v = (tensor(i, 2, 3, 21, 20) for i in range(3))
        keep(f"attention_{causal}", samebits.attention(q, k4, v, causal), q, k4, v)
    x, weight, bias = tensor(5, 7, 33), tensor(6, 33), tensor(7, 33)
    keep("softmax", samebits.softmax(x), x)
    keep("layer_norm", samebits.layer_norm(x, weight, bias, 1e-5), x, weight, bias)
    if few:
        return made
    keep("gelu", samebits.gelu(x), x)
    keep("cross_entropy", samebits.cross_entropy(x, torch.arange(7)), x)
    for name in ("exp", "erf", "sin", "cos", "tanh"):
        keep(name, getattr(samebits, name)(x), x)
    made["normal"] = samebits.random.normal((40,), 0.5, seed=1, site=2)
    return made


def digests(*, few: bool = False) -> dict[str, str]:
    """The digest of every result."""
    return {name: samebits.digest({name: result}) for name, result in results(few=few).items()}


if __name__ == "__main__":
    print(json.dumps(digests(few="few" in sys.argv[1:])))  # noqa: T201
