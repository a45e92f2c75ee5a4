"""What every public operator refuses, in its own name: other dtypes, devices, shapes, derivatives and arithmetic."""

from __future__ import annotations

import pytest
import torch
from kernels_bits import assert_same_bits
from operator_table import ENTRIES, Entry, upstream
from torch import Tensor

EVERY = pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
SHAPED = {key: entry for key, entry in ENTRIES.items() if not entry.takes_any_shape}


def replaced(inputs: list[Tensor], position: int, value: object) -> list[object]:
    return [value if i == position else x for i, x in enumerate(inputs)]


@EVERY
def test_another_dtype_or_device_or_no_tensor(entry: Entry) -> None:
    inputs, name = entry.inputs(1, "plain", 3), entry.operator
    for i, x in enumerate(inputs):
        other = x.detach().double() if x.is_floating_point() else x.double()
        for wrong in (other, other.half(), other.bool(), [1.0], None):
            if wrong is None and name in ("linear", "multihead_attention", "conv2d"):
                continue  # a bias may be absent
            with pytest.raises(TypeError, match=rf"^{name}: "):
                entry.call(*replaced(inputs, i, wrong))
        with pytest.raises(RuntimeError, match=rf"^{name}: \w+ must be a dense tensor on the CPU"):
            entry.call(*replaced(inputs, i, x.detach().to("meta")))
        with pytest.raises(RuntimeError, match=rf"^{name}: \w+ must be a dense tensor on the CPU"):
            entry.call(*replaced(inputs, i, x.detach().to_sparse()))


@pytest.mark.parametrize("entry", SHAPED.values(), ids=list(SHAPED))
def test_a_shape_that_does_not_fit(entry: Entry) -> None:
    inputs = entry.inputs(1, "plain", 3)
    last = len(inputs) - 1
    with pytest.raises(ValueError, match=rf"^{entry.operator}: "):
        entry.call(*replaced(inputs, last, inputs[last].detach().unsqueeze(0)))


@EVERY
def test_a_change_in_place_is_noticed_or_has_no_effect(entry: Entry) -> None:
    for position in range(-1, len(entry.batch) + len(entry.parameters)):
        inputs = entry.inputs(1, "plain", 3)
        expected = entry.both(inputs, 1)[1:]
        out = entry.call(*inputs)
        changed = out if position < 0 else inputs[position]
        with torch.no_grad():
            changed.copy_(torch.zeros_like(changed))
        leaves = [x for x in inputs if x.requires_grad]
        try:
            grads = torch.autograd.grad(out, leaves, upstream(out, 1))
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017 - either of two ends is right
            continue
        for found, wanted in zip(grads, expected, strict=True):
            assert_same_bits(found, wanted)


@EVERY
def test_second_derivatives(entry: Entry) -> None:
    inputs = entry.inputs(1, "plain", 3)
    leaves, out = [x for x in inputs if x.requires_grad], entry.call(*inputs)
    grad = upstream(out, 1).requires_grad_()
    with pytest.raises(RuntimeError, match=r"^\w+: there is no second derivative"):
        torch.autograd.backward(torch.autograd.grad(out, leaves, grad, create_graph=True)[0].sum())


@EVERY
def test_flush_to_zero(entry: Entry) -> None:
    inputs = entry.inputs(1, "plain", 3)
    out = entry.call(*inputs)
    grad = upstream(out, 1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode")
    try:
        with pytest.raises(RuntimeError, match="subnormal numbers are flushed to zero"):
            entry.call(*inputs)
    finally:
        torch.set_flush_denormal(False)
    assert entry.call(*inputs).shape == grad.shape
