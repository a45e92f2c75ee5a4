"""The digits: the data as they are, and batches that depend on nothing but seed and step."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnode.client.batch import to_array
from pnode.config import load
from pnode.jobs import digits
from pnode.jobs.catalog import make_job
from pnode.jobs.philox import permutation, philox, site, words


def test_philox_gives_the_known_answers_of_its_authors() -> None:
    """From kat_vectors of Random123, philox4x32 with 10 rounds."""
    zero = np.zeros(1, np.uint64)
    ones = zero + np.uint64(0xFFFFFFFF)
    first, second, third, fourth = (zero + np.uint64(word) for word in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344))
    for given_counter, key, known in (
        ((zero, zero, zero, zero), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones, ones, ones, ones), 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((first, second, third, fourth), 0x299F31D0_A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):
        assert tuple(int(word[0]) for word in philox(given_counter, key)) == known


def test_a_site_is_the_head_of_a_sha256() -> None:
    assert site("digits/order") == int.from_bytes(hashlib.sha256(b"digits/order").digest()[:8], "little")


@given(st.integers(1, 200), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_a_permutation_has_everything_once(num: int, seed: int, step: int) -> None:
    drawn = permutation(num, seed=seed, path="x", step=step)
    assert sorted(drawn.tolist()) == list(range(num))
    assert np.array_equal(drawn, permutation(num, seed=seed, path="x", step=step))


def test_more_words_begin_with_the_same_words() -> None:
    assert np.array_equal(words(50, seed=3, path="x")[:7], words(7, seed=3, path="x"))
    assert not np.array_equal(words(8, seed=3, path="x"), words(8, seed=3, path="x", step=1))
    assert not np.array_equal(words(8, seed=3, path="x"), words(8, seed=3, path="y"))


def test_there_are_1797_images_in_ten_classes() -> None:
    rows = digits.load_rows()
    assert rows.tokens.shape == (1797, 9, 16)
    assert rows.labels.shape == (1797,)
    assert sorted(set(rows.labels.tolist())) == list(range(10))


def test_tokens_are_overlapping_patches_and_exact() -> None:
    images = np.arange(64, dtype=np.uint8).reshape(1, 8, 8) % 17
    tokens = digits.tokens_of(images)
    for token in range(9):
        row, column = 2 * (token // 3), 2 * (token % 3)
        patch = images[0, row : row + 4, column : column + 4].astype(np.float64).reshape(-1)
        assert np.array_equal(tokens[0, token].astype(np.float64) * 8 + 8, patch)


def test_the_split_is_always_the_same() -> None:
    train, test = digits.split()
    assert (len(train), len(test)) == (1437, 360)
    assert sorted([*train, *test]) == list(range(1797))
    digest = hashlib.sha256(test.astype("<i8").tobytes()).hexdigest()
    assert digest == "1eb0850403cf670c8aa908c0e636125bb479e51b86056852a0ed641b154e1e05"


def test_an_epoch_sees_every_image_once_and_no_test_image() -> None:
    step_rows = 64
    seen: list[bytes] = []
    for step in range(23):
        tokens = to_array(digits.batch(1, step, step_rows).inputs[0])
        seen += [row.tobytes() for row in tokens]
    epoch = digits.load_rows().tokens[digits.split()[0]]
    assert sorted(seen[:1437]) == sorted(row.tobytes() for row in epoch)


def test_batches_are_a_pure_function_of_seed_and_step() -> None:
    assert digits.batch(1, 100, 64) == digits.batch(1, 100, 64)
    assert digits.batch(1, 100, 64) != digits.batch(1, 101, 64)
    assert digits.batch(1, 100, 64) != digits.batch(2, 100, 64)
    digest = hashlib.sha256(bytes(digits.batch(1, 100, 64).inputs[0].payload)).hexdigest()
    assert digest == "456329a57aab65bc4bb71e4eb2ebd3c8c0b044110efa036215a0e9c5750d37dc"


@pytest.mark.parametrize("steps", [1, 5, 240])
def test_the_job_is_as_configured(steps: int) -> None:
    job = make_job(load([f"job.steps={steps}", "job.stages=2"]).job)
    specs = job.cut("run")
    assert len(specs) == 2
    assert specs[0].optimizer.schedule.total_steps == steps
    assert specs[0].window == job.num_microbatches
    assert specs[0].limits.max_rows == 360
