"""Batches are rows; microbatches are slices of them, in order and complete."""

from __future__ import annotations

import numpy as np
import pytest
import samebits
import torch
from client_rows import make_batch
from hypothesis import given
from hypothesis import strategies as st

from pnode.client.accuracy import accuracy
from pnode.client.batch import Batch, bfloat16_from, from_array, to_array
from pnode.vnode.torch_tensors import to_bytes


@given(st.integers(1, 12), st.integers(1, 12))
def test_microbatches_are_the_batch_again(num_rows: int, num: int) -> None:
    batch = make_batch(3, num_rows)
    if num > num_rows:
        with pytest.raises(ValueError, match="cannot be split"):
            batch.split(num)
        return
    parts = batch.split(num)
    sizes = [part.num_rows for part in parts]
    assert sum(sizes) == num_rows
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    for index, tensor in enumerate((*batch.inputs, *batch.targets)):
        again = np.concatenate([to_array((*part.inputs, *part.targets)[index]) for part in parts])
        assert again.tobytes() == tensor.payload


def test_arrays_survive_the_way_through_bytes() -> None:
    for dtype in ("<f4", "<i8", "<i4", "u1", "?"):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        assert np.array_equal(to_array(from_array("x", array)), array)
    big = np.arange(6, dtype=">f4").reshape(2, 3)
    assert from_array("x", big).payload == big.astype("<f4").tobytes()
    with pytest.raises(KeyError):
        from_array("x", np.zeros(2))


def test_rows_of_different_numbers_are_no_batch() -> None:
    two, three = from_array("a", np.zeros((2, 1), np.float32)), from_array("b", np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="one number of rows"):
        Batch((two,), (three,))
    with pytest.raises(ValueError, match="has inputs"):
        Batch(())


def test_accuracy_counts_the_rows_whose_largest_logit_is_right() -> None:
    logits = from_array("head", np.array([[1, 2], [3, 0], [5, 5], [0, 1]], np.float32))
    rows = Batch((logits,), (from_array("label", np.array([1, 1, 0, 1])),))
    assert accuracy(logits, rows) == 0.75


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_bfloat16_is_rounded_as_samebits_rounds_it(bits: list[int]) -> None:
    array = np.array([0x7F7FFFFF, 0xFF800000, 0x80000001, 0xFFFFFFFF, 0x3F808000, *bits], np.uint32).view(np.float32)
    tensor = bfloat16_from("x", array.reshape(1, -1))
    expected = samebits.to_bfloat16(torch.from_numpy(array.copy()))
    assert tensor == to_bytes("x", expected.reshape(1, -1))._replace(payload=tensor.payload)
    assert tensor.payload == expected.view(torch.int16).numpy().tobytes()
    assert to_array(tensor).tobytes() == expected.float().numpy().tobytes()
