"""A few steps of a small LeNet with Adam leave the parameters that the plain loops leave, bit for bit.

The published run itself (RepDL's LeNet-5 on MNIST) is `python -m benchmarks.lenet_mnist`; this one needs no files.
"""

from __future__ import annotations

import numpy as np
import samebits
import torch
from kernels_bits import Floats, assert_same_bits, floats
from samebits.reference import elementwise, images, matmul, optim, rows

SHAPES = ((2, 1, 3, 3), (2,), (3, 2, 2, 2), (3,), (4, 12), (4,))  # two convolutions and a linear layer
ONE, NONE, PADDED = (1, 1), (0, 0), (1, 1)
RATE, BETAS, EPS = 0.01, (0.9, 0.999), 1e-8
Parameters = list[Floats]


def batch(step: int) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Two images [1, 10, 10] in 0..1 as bytes give them, dark at the edges, and their classes."""
    rng = np.random.Generator(np.random.PCG64(step))
    pixels = np.zeros((2, 1, 10, 10), np.uint8)
    pixels[:, :, 2:8, 3:8] = rng.integers(0, 256, (2, 1, 6, 5))
    return pixels.astype(np.float32) / np.float32(255.0), rng.integers(0, 4, 2)


def loops(p: Parameters, x: Floats, target: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Parameters:
    """The gradients of all parameters."""
    a = images.conv2d(x, p[0], p[1], ONE, PADDED, ONE, 1)
    b, won_b = images.max_pool2d(elementwise.each(elementwise.relu, a), (2, 2), (2, 2), NONE)
    c = images.conv2d(b, p[2], p[3], ONE, NONE, ONE, 1)
    d, won_d = images.max_pool2d(elementwise.each(elementwise.relu, c), (2, 2), (2, 2), NONE)
    flat = d.reshape(2, 12)
    g = rows.mean_loss_backward(np.float32(1.0), matmul.linear(flat, p[4], p[5]), target, 2)
    zeros = [np.zeros_like(value) for value in p]
    g_flat, *grads_linear = matmul.linear_backward(flat, p[4], g)
    g_c = images.max_pool2d_backward(g_flat.reshape(d.shape), won_d, c.shape)
    g_c = elementwise.each(elementwise.relu_backward, g_c, c)
    g_b, *grads_second = images.conv2d_backward(b, p[2], g_c, zeros[2], zeros[3], ONE, NONE, ONE, 1)
    g_a = images.max_pool2d_backward(g_b, won_b, a.shape)
    g_a = elementwise.each(elementwise.relu_backward, g_a, a)
    _, *grads_first = images.conv2d_backward(x, p[0], g_a, zeros[0], zeros[1], ONE, PADDED, ONE, 1)
    return [*grads_first, *grads_second, *grads_linear]


def samebits_loss(p: list[torch.Tensor], x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    x = samebits.max_pool2d(samebits.relu(samebits.conv2d(x, p[0], p[1], padding=1)), 2)
    x = samebits.max_pool2d(samebits.relu(samebits.conv2d(x, p[2], p[3])), 2)
    return samebits.cross_entropy(samebits.linear(x.flatten(1), p[4], p[5]), target)


def test_three_steps_of_a_small_lenet() -> None:
    plain = [floats(i, "plain", *shape) for i, shape in enumerate(SHAPES)]
    parameters = [torch.from_numpy(value.copy()).requires_grad_() for value in plain]
    optimizer = samebits.optim.Adam(parameters, lr=RATE)
    zero = np.float32(0.0)
    states = [[optim.Adam(v, zero, zero) for v in value.flat] for value in plain]
    for step in (1, 2, 3):
        x, target = batch(step)
        optimizer.zero_grad()
        samebits_loss(parameters, torch.from_numpy(x), torch.from_numpy(target)).backward()
        optimizer.step()
        for i, grad in enumerate(loops(plain, x, target)):
            pairs = zip(states[i], grad.flat, strict=True)
            states[i] = [optim.adam(state, g, step, RATE, BETAS, EPS, 0.0) for state, g in pairs]
            plain[i] = np.array([state.p for state in states[i]], np.float32).reshape(SHAPES[i])
        for fast, dumb in zip(parameters, plain, strict=True):
            assert_same_bits(fast, dumb)
