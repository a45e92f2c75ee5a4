"""Products whose shape gets a kernel of its own: few rows, short chains, far strides; bit for bit the plain loops'."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import samebits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_bits import assert_same_bits, flavours, floats, seeds, strided
from samebits import _product
from samebits._gemm import BLOCK, DEPTH, FAR, SHALLOW
from samebits._slim import DEPTH as STRIP_DEPTH
from samebits._slim import STRIP_ROWS, TURNED_ROWS, WIDEST
from samebits._vectors import LANES
from samebits.reference import matmul as reference

DEPTHS = [1, 2, LANES - 1, LANES, LANES + 1, 3 * LANES + 5, STRIP_DEPTH, STRIP_DEPTH + 1]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(_product, "WORTH_THREADS", 0)
    samebits.set_num_threads(request.param)
    yield request.param
    samebits.set_num_threads(1)


@given(
    st.integers(1, TURNED_ROWS + 1), st.sampled_from(DEPTHS),
    st.sampled_from([1, LANES - 1, LANES, LANES + 1, 3 * LANES, WIDEST, 2 * WIDEST, 2 * WIDEST + LANES]),
    st.integers(0, 3), st.integers(0, 3), seeds(), flavours(),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_few_rows(m: int, k: int, n: int, layout_a: int, layout_b: int, seed: int, flavour: str) -> None:
    a, b, bias = floats(seed, flavour, m, k), floats(seed + 1, flavour, k, n), floats(seed + 2, flavour, n)
    fast_a, fast_b = strided(a, layout_a), strided(b, layout_b)
    assert_same_bits(samebits.matmul(fast_a, fast_b), reference.matmul(a, b))
    fast = samebits.linear(fast_a, fast_b.mT, torch.from_numpy(bias))
    assert_same_bits(fast, reference.linear(a, b.T.copy(), bias))


@given(st.integers(1, _product.FEW + 1), st.integers(1, 11), st.integers(0, 1), seeds(), flavours())
@settings(deadline=None, max_examples=40)
def test_gradients_of_few_rows_begin_and_continue(k: int, m: int, layout: int, seed: int, flavour: str) -> None:
    x, g, w = floats(seed, flavour, k, WIDEST), floats(seed + 1, flavour, k, m), floats(seed + 2, flavour, m, WIDEST)
    weight = strided(w, layout).requires_grad_()
    for twice in (1, 2):
        for half in (slice(0, k // 2), slice(k // 2, k)):
            torch.autograd.backward(
                samebits.linear(torch.from_numpy(x[half].copy()), weight), torch.from_numpy(g[half])
            )
        _, whole, _ = reference.linear_backward(
            x if twice == 1 else torch.cat([torch.from_numpy(x)] * 2).numpy(), w,
            g if twice == 1 else torch.cat([torch.from_numpy(g)] * 2).numpy(),
        )  # fmt: skip
        assert weight.grad is not None
        assert_same_bits(weight.grad, whole)


@pytest.mark.parametrize("m", range(1, TURNED_ROWS + 2))
def test_every_number_of_rows_in_every_layout(m: int, threads: int) -> None:
    for k, n in ((STRIP_DEPTH + LANES + 3, 2 * WIDEST), (2 * LANES, 3 * LANES + 1)):
        a, b = floats(m, "plain", m, k), floats(n, "plain", k, n)
        expected = reference.matmul(a, b)
        for layout_a in range(4):
            for layout_b in range(4):
                assert_same_bits(samebits.matmul(strided(a, layout_a), strided(b, layout_b)), expected)


@pytest.mark.parametrize(("m", "k", "n"), [
    (BLOCK + 3, DEPTH + 5, 200), (BLOCK + 9, SHALLOW, 300), (20, 2 * DEPTH + 1, FAR + 50), (300, 40, 290),
])  # fmt: skip
def test_blocks_of_a_that_are_copied_together(m: int, k: int, n: int, threads: int) -> None:
    a, b = floats(m, "plain", m, k), floats(n, "special", k, n)
    expected = reference.matmul(a, b)
    wide = torch.zeros(m, k + FAR + 7)
    wide[:, :k] = torch.from_numpy(a)
    tall = torch.zeros(k, m + FAR + 7)
    tall[:, :m] = torch.from_numpy(a.T.copy())
    for fast_a in (wide[:, :k], tall[:, :m].mT, torch.from_numpy(a)):
        for layout_b in (0, 1):
            assert_same_bits(samebits.matmul(fast_a, strided(b, layout_b)), expected)


def test_a_matrix_of_one_repeated_row_is_read_as_such() -> None:
    row, x = floats(1, "plain", 40), floats(2, "plain", STRIP_ROWS, 40)
    repeated = torch.from_numpy(row).expand(50, 40)
    assert_same_bits(samebits.linear(torch.from_numpy(x), repeated), reference.linear(x, repeated.numpy().copy(), None))
