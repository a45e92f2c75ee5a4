"""Philox gives its authors' known answers; numbers depend on their place alone; digests see every bit but a NaN's."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, floats
from samebits.random import normal, site, uniform
from samebits.reference import random as reference

ALL = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORDS = st.integers(0, 2**64 - 1)
HALVES = st.integers(0, 2**32 - 40)
SHAPES = st.sampled_from([(), (0,), (1,), (5,), (3, 4), (2, 7), (3, 0), (2, 3, 5)])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: reference.Words, key: tuple[int, int], answer: reference.Words) -> None:
    assert reference.philox(counter, key) == answer


@given(SHAPES, WORDS, WORDS, HALVES, HALVES)
@settings(deadline=None, max_examples=60)
def test_numbers_are_functions_of_their_place(
    shape: tuple[int, ...], seed: int, place: int, step: int, first: int
) -> None:
    even = uniform(shape, -0.25, 0.5, seed=seed, site=place, step=step, first_sample=first)
    bell = normal(shape, 0.02, seed=seed, site=place, step=step, first_sample=first)
    rows = (even.reshape(-1, 1), bell.reshape(-1, 1)) if len(shape) < 2 else (even.flatten(1), bell.flatten(1))
    for i, e in np.ndindex(*rows[0].shape):
        word = reference.word(e, first + i, step, seed, place)
        assert rows[0][i, e].item() == reference.uniform(word, -0.25, 0.5)
        assert rows[1][i, e].item() == reference.normal(e, first + i, step, seed, place, 0.02)


def test_samples_can_be_drawn_apart(shared_out: None) -> None:
    whole = normal((10, 13), 1.0, seed=7, site=site("layer.weight"))
    parts = [normal((2, 13), 1.0, seed=7, site=site("layer.weight"), first_sample=i) for i in range(0, 10, 2)]
    assert_same_bits(torch.cat(parts), whole)
    samebits.set_num_threads(1)
    assert_same_bits(normal((10, 13), 1.0, seed=7, site=site("layer.weight")), whole)


def test_distributions() -> None:
    even, bell = uniform((400, 500), -1.0, 3.0, seed=1, site=2), normal((400, 500), 2.0, seed=1, site=2)
    assert even.min() >= -1.0
    assert even.max() <= 3.0
    assert abs(even.double().mean() - 1.0) < 0.01
    assert abs(even.double().std() - 4 / 12**0.5) < 0.01
    assert abs(bell.double().mean()) < 0.02
    assert abs(bell.double().std() - 2.0) < 0.02
    pairs = torch.corrcoef(bell.double().reshape(-1, 2).T)
    assert abs(pairs[0, 1]) < 0.01


def test_site_is_the_head_of_a_hash() -> None:
    assert site("a.weight") == int.from_bytes(hashlib.sha256(b"a.weight").digest()[:8], "little")


def test_bad_arguments() -> None:
    for bad in (-1, 2**64):
        with pytest.raises(ValueError, match=r"^uniform: seed must be"):
            uniform((2,), 0.0, 1.0, seed=bad, site=0)
    with pytest.raises(ValueError, match=r"^normal: step must be"):
        normal((2,), 1.0, seed=0, site=0, step=2**32)
    with pytest.raises(ValueError, match=r"^normal: std must be finite"):
        normal((2,), -1.0, seed=0, site=0)
    with pytest.raises(ValueError, match=r"^uniform: low 1.0 and high 0.0"):
        uniform((2,), 1.0, 0.0, seed=0, site=0)
    with pytest.raises(ValueError, match=r"^uniform: 3 samples from 4294967294 on"):
        uniform((3,), 0.0, 1.0, seed=0, site=0, first_sample=2**32 - 2)


def test_digest_is_over_names_types_shapes_and_canonical_bytes() -> None:
    x = torch.from_numpy(floats(1, "special", 3, 5))
    base = samebits.digest({"x": x})
    content = np.where(np.isnan(x.numpy()), np.float32(np.nan), x.numpy()).astype("<f4").tobytes()
    head = b"\x01\0\0\0x\x07\0\0\0float32\x02\0\0\0" + (3).to_bytes(8, "little") + (5).to_bytes(8, "little")
    assert base == hashlib.sha256(head + content).hexdigest()
    assert samebits.digest({"x": x.mT.contiguous().mT}) == base
    others = [{"y": x}, {"x": x.reshape(5, 3)}, {"x": x.view(torch.int32)}, {"x": x, "y": x}, {}]
    others += [{"x": torch.where(x == 0, -x, x)}, {"x": x.double()}]
    assert len({base, *map(samebits.digest, others)}) == len(others) + 1
    assert samebits.digest({"a": x, "b": x[0]}) != samebits.digest({"b": x[0], "a": x})


@pytest.mark.parametrize(
    ("dtype", "words", "payload", "canonical"),
    [
        (torch.float32, torch.int32, -1, 0x7FC00000),
        (torch.bfloat16, torch.int16, 0x7F81, 0x7FC0),
        (torch.float16, torch.int16, -1, 0x7E00),
        (torch.float64, torch.int64, 0x7FF0000000000001, 0x7FF8000000000000),
    ],
)
def test_canonical_nan(dtype: torch.dtype, words: torch.dtype, payload: int, canonical: int) -> None:
    odd = torch.tensor([payload, 0], dtype=words).view(dtype)
    odd[1] = -0.0
    before = odd.clone()
    assert samebits.digest({"t": odd}) == samebits.digest({"t": samebits.canonical_(odd.clone())})
    assert torch.equal(odd.view(words), before.view(words))
    assert samebits.canonical_(odd) is odd
    assert odd.view(words)[0] == canonical
    assert torch.signbit(odd[1])


def test_digest_of_scalars_empties_integers_and_what_it_refuses() -> None:
    samebits.digest({"s": torch.tensor(1.0), "e": torch.empty(0, 3), "i": torch.arange(3), "b": torch.tensor([True])})
    with pytest.raises(TypeError, match=r"^digest: 'c' has dtype torch.complex64"):
        samebits.digest({"c": torch.ones(1, dtype=torch.complex64)})
    with pytest.raises(TypeError, match=r"^digest: 'n' must be a Tensor, not int"):
        samebits.digest({"n": 1})  # type: ignore[dict-item]  # that is the point
    with pytest.raises(RuntimeError, match=r"^digest: 'm' must be a dense tensor on the CPU"):
        samebits.digest({"m": torch.ones(1, device="meta")})


NAN_WORDS = (0x7FC00000, 0x7FC00001, 0x7F800001, 0xFFC00000, 0xFFFFFFFF, 0x7FFFFFFF)


@given(words=st.lists(st.sampled_from(NAN_WORDS) | st.integers(0, 2**32 - 1), max_size=70), rows=st.integers(1, 3))
@pytest.mark.usefixtures("shared_out")
def test_a_canonical_copy_is_the_copy_made_canonical(words: list[int], rows: int) -> None:
    t = torch.from_numpy(np.array(words * rows, dtype=np.uint32).view(np.float32)).view(rows, -1).mT
    out = torch.full((t.numel(),), 7.0)
    before = out._version
    assert samebits.copy_canonical_(out, t) is out
    assert out._version > before
    assert torch.equal(out.view(torch.int32), samebits.canonical_(t.contiguous().view(-1)).view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_a_canonical_copy_of_other_types(dtype: torch.dtype) -> None:
    t = torch.tensor([[0.0, -0.0, 3.0], [1.0, 2.0, torch.nan]]).to(dtype)
    out = torch.zeros(6, dtype=dtype)
    assert samebits.copy_canonical_(out, t) is out
    assert samebits.digest({"t": out.view(2, 3)}) == samebits.digest({"t": t})


def test_a_canonical_copy_needs_a_place_of_its_kind() -> None:
    t = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"^copy_canonical_: out is torch\.float64"):
        samebits.copy_canonical_(torch.zeros(6, dtype=torch.float64), t)
    for out in (torch.zeros(5), torch.zeros(3, 2).mT):
        with pytest.raises(ValueError, match=r"^copy_canonical_: out"):
            samebits.copy_canonical_(out, t)
