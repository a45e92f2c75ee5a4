"""embedding equals its plain loop bit for bit, continues gradients over microbatches, and names what is no row."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds, strided
from samebits.reference import drawn as reference

SHAPES = st.sampled_from([(), (0,), (1,), (7,), (3, 11), (2, 3, 5)])


def drawn_indices(seed: int, rows: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(np.random.Generator(np.random.PCG64(seed)).integers(0, rows, shape), np.int64))


@given(
    SHAPES, st.sampled_from([(1, 1), (5, 3), (17, 40), (3, 0)]), st.integers(0, 3), st.booleans(), seeds(), flavours()
)
@settings(deadline=None, max_examples=80)
def test_forward_and_backward(
    shape: tuple[int, ...], table: tuple[int, int], layout: int, pads: bool, seed: int, flavour: str
) -> None:
    rows, n = table
    indices, values = drawn_indices(seed, rows, shape), floats(seed, flavour, rows, n)
    weight = strided(values, layout).requires_grad_()
    flat, padding = indices.reshape(-1).tolist(), rows - 1 if pads else None
    start = floats(seed + 1, flavour, rows, n)
    weight.grad = torch.from_numpy(start.copy())
    out = samebits.embedding(indices, weight, padding_idx=-1 if pads else None)
    assert_same_bits(out, reference.embedding(flat, values).reshape(*shape, n))
    grad = floats(seed + 2, flavour, *shape, n)
    with np.errstate(all="ignore"):
        expected = reference.embedding_backward(flat, grad.reshape(len(flat), n), start, padding)
    torch.autograd.backward(out, torch.from_numpy(grad))
    assert_same_bits(weight.grad, expected)


def test_microbatches_in_order_equal_the_whole_batch(shared_out: None) -> None:
    indices, grad = drawn_indices(1, 9, (12, 5)), torch.from_numpy(floats(2, "plain", 12, 5, 33))
    whole, parts = (torch.from_numpy(floats(3, "plain", 9, 33)).requires_grad_() for _ in range(2))
    torch.autograd.backward(samebits.embedding(indices, whole), grad)
    samebits.set_num_threads(1)
    for i in range(0, 12, 3):
        torch.autograd.backward(samebits.embedding(indices[i : i + 3], parts), grad[i : i + 3])
    assert whole.grad is not None
    assert parts.grad is not None
    assert_same_bits(whole.grad, parts.grad)
    (separate,) = torch.autograd.grad(samebits.embedding(indices, whole), whole, grad)
    assert_same_bits(separate, whole.grad)


def test_it_is_torch_s_lookup_and_int32_will_do() -> None:
    indices, weight = drawn_indices(1, 9, (4, 5)), torch.from_numpy(floats(3, "plain", 9, 33))
    assert torch.equal(samebits.embedding(indices.int(), weight), torch.nn.functional.embedding(indices, weight))
    assert torch.equal(samebits.embedding(indices.mT, weight), torch.nn.functional.embedding(indices.mT, weight))


def test_bad_arguments() -> None:
    weight, indices = torch.zeros(3, 2, requires_grad=True), torch.tensor([[0, 2], [3, -1]])
    with pytest.raises(IndexError, match=r"^embedding: index 3 at flat position 2 is not in 0\.\.2"):
        samebits.embedding(indices, weight)
    with pytest.raises(IndexError, match=r"^embedding: index -1 at flat position 0"):
        samebits.embedding(indices[1, 1:], weight)
    with pytest.raises(TypeError, match=r"^embedding: indices must be torch.int64, not torch.float32"):
        samebits.embedding(torch.zeros(2), weight)
    with pytest.raises(TypeError, match=r"^embedding: weight must be torch.float32, not torch.float64"):
        samebits.embedding(indices, weight.double())
    with pytest.raises(ValueError, match=r"^embedding: weight must be \[V, F\], not \[3\]"):
        samebits.embedding(indices, weight[:, 0])
    with pytest.raises(ValueError, match=r"^embedding: padding_idx must be within the 3 rows"):
        samebits.embedding(indices, weight, padding_idx=3)
    out = samebits.embedding(indices[:1], weight)
    with pytest.raises(RuntimeError, match=r"^embedding: there is no second derivative"):
        torch.autograd.grad(out.sum(), weight, create_graph=True)
    weight.register_hook(lambda grad: None)
    with pytest.raises(RuntimeError, match=r"^embedding: a parameter has gradient hooks"):
        torch.autograd.backward(samebits.embedding(indices[:1], weight).sum())
