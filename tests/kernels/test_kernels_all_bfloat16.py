"""Every operator on bfloat16 is the operator on widened inputs, its result and its gradients rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, seeds
from numpy.typing import NDArray
from operator_table import ENTRIES, Entry, upstream
from samebits.reference import bfloat16 as reference
from torch import Tensor

STORED = {key: entry for key, entry in ENTRIES.items() if entry.bfloat16 != "no"}
LOSSES = {"cross_entropy", "mse_loss"}  # whose results stay float32
FEW = settings(deadline=None, max_examples=8)


def rounded(x: Tensor) -> Tensor:
    """By the plain loop, as binary32 again."""
    return from_words(reference.rounded(x.detach().numpy()))


def widened(x: Tensor) -> Tensor:
    """By the plain loop."""
    return from_words(x.detach().view(torch.int16).numpy().view(np.uint16))


def from_words(words: NDArray[np.uint16]) -> Tensor:
    made = [reference.widen(int(word)) for word in words.flat]
    return torch.from_numpy(np.array(made, np.float32).reshape(words.shape))


def expected_of(entry: Entry, inputs: list[Tensor], seed: int) -> list[Tensor]:
    """From float32 alone: the widened inputs, the widened gradient of the result; all rounded that is stored so."""
    wide = [widened(x).requires_grad_() if x.dtype is torch.bfloat16 else x for x in inputs]
    out = entry.call(*[x.clone() if x.requires_grad else x for x in wide])  # what was widened is no leaf
    grad = upstream(out, seed)
    is_loss = entry.operator in LOSSES
    leaves = [x for x in wide if x.requires_grad]
    grads = torch.autograd.grad(out, leaves, grad if is_loss else rounded(grad))
    stored = [x.dtype is torch.bfloat16 for x in inputs if x.requires_grad]
    found = [rounded(grad) if narrow else grad for grad, narrow in zip(grads, stored, strict=True)]
    return [out.detach() if is_loss else rounded(out), *found]


@pytest.mark.parametrize("entry", STORED.values(), ids=list(STORED))
@given(st.sampled_from([0, 1, 3, 17]), st.booleans(), seeds(), flavours())
@FEW
def test_one_rounding(entry: Entry, rows: int, mixed: bool, seed: int, flavour: str) -> None:
    inputs = entry.inputs(seed, flavour, rows)
    mixed = mixed and entry.bfloat16 == "mixed"
    narrow = len(entry.batch) if mixed else len(inputs)
    for i, x in enumerate(inputs[:narrow]):
        if x.requires_grad:
            inputs[i] = samebits.to_bfloat16(x.detach()).requires_grad_()
    expected, found = expected_of(entry, inputs, seed), entry.both(inputs, seed)
    for fast, dumb in zip(found, expected, strict=True):
        assert_same_bits(fast.float(), dumb)
    wanted = torch.float32 if entry.operator in LOSSES else torch.bfloat16
    assert found[0].dtype is wanted
    assert [x.dtype for x in found[1:]] == [x.dtype for x in inputs if x.requires_grad]
