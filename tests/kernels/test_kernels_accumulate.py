"""Where gradients go: into a leaf's .grad, into a tensor of their own, or nowhere."""

from __future__ import annotations

import pytest
import samebits
import torch
from kernels_bits import assert_same_bits, floats

Leaves = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def leaves() -> Leaves:
    made = [torch.from_numpy(floats(i, "plain", *shape)) for i, shape in enumerate([(9, 5), (7, 5), (7,)])]
    return (made[0].requires_grad_(), made[1].requires_grad_(), made[2].requires_grad_())


def test_grad_leaves_the_buffers_alone_and_starts_from_zero() -> None:
    x, w, b = leaves()
    torch.autograd.backward(samebits.linear(x, w, b).sum())
    before = [torch.clone(leaf.grad) for leaf in (x, w, b) if leaf.grad is not None]
    separate = torch.autograd.grad(samebits.linear(x, w, b).sum(), (x, w, b))
    for leaf, old, new in zip((x, w, b), before, separate, strict=True):
        assert leaf.grad is not None
        assert_same_bits(leaf.grad, old)
        assert_same_bits(new, old)


def test_grad_of_other_inputs_leaves_parameters_alone() -> None:
    x, w, b = leaves()
    torch.autograd.grad(samebits.linear(x, w, b).sum(), x)
    assert w.grad is None
    assert b.grad is None


def test_backward_with_inputs_fills_only_those() -> None:
    x, w, b = leaves()
    torch.autograd.backward(samebits.linear(x, w, b).sum(), inputs=[w])
    assert w.grad is not None
    assert b.grad is None
    assert x.grad is None


def test_the_buffer_is_continued_in_place() -> None:
    x, w, b = leaves()
    torch.autograd.backward(samebits.linear(x, w, b).sum())
    buffer = w.grad
    assert buffer is not None
    address, version = buffer.data_ptr(), buffer._version
    torch.autograd.backward(samebits.linear(x, w, b).sum())
    assert w.grad is buffer
    assert buffer.data_ptr() == address
    assert buffer._version > version


def test_a_buffer_with_other_strides_is_taken_over() -> None:
    x, w, b = leaves()
    (fresh,) = torch.autograd.grad(samebits.linear(x, w, b).sum(), w)
    w.grad = torch.zeros(5, 7).mT
    torch.autograd.backward(samebits.linear(x, w, b).sum())
    assert_same_bits(w.grad, fresh)


def test_a_weight_that_was_computed_gets_its_gradient_through_the_graph() -> None:
    x, w, b = leaves()
    torch.autograd.backward(samebits.linear(x, w * 1.0, b).sum())
    (expected,) = torch.autograd.grad(samebits.linear(x, w, b).sum(), w)
    assert w.grad is not None
    assert_same_bits(w.grad, expected)


def test_frozen_parameters_cost_nothing_and_get_nothing() -> None:
    x, w, b = leaves()
    w.requires_grad_(False)
    torch.autograd.backward(samebits.linear(x, w, b).sum())
    assert w.grad is None
    assert b.grad is not None


def test_a_hook_that_would_be_passed_by_is_refused() -> None:
    x, w, b = leaves()
    w.register_hook(lambda grad: grad)
    with pytest.raises(RuntimeError, match=r"^linear: a parameter has gradient hooks"):
        torch.autograd.backward(samebits.linear(x, w, b).sum())


def test_backward_twice_through_one_graph_continues_the_chain() -> None:
    x, w, b = leaves()
    out = samebits.linear(x, w, b).sum()
    torch.autograd.backward(out, retain_graph=True)
    torch.autograd.backward(out)
    again = [leaf.detach().clone().requires_grad_() for leaf in (x, w, b)]
    for _ in range(2):
        torch.autograd.backward(samebits.linear(*again).sum())
    for old, new in ((w, again[1]), (b, again[2])):
        assert old.grad is not None
        assert new.grad is not None
        assert_same_bits(old.grad, new.grad)
