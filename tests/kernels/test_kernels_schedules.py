"""Learning rates are correctly rounded, begin and end where they say, and serve any optimizer and torch's scheduler."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samebits._rounded import cos_pi, rational_power
from samebits.optim import SGD, Adam, Constant, Cosine, MultiStep, Polynomial, Step, WarmUp, set_lr


def arctan(inverse: int) -> Fraction:
    """arctan(1 / inverse) to 80 digits, by its series."""
    terms = (Fraction((-1) ** n, (2 * n + 1) * inverse ** (2 * n + 1)) for n in range(70))
    return sum(terms, Fraction(0))


@cache
def pi() -> Fraction:
    """Machin's formula."""
    return 16 * arctan(5) - 4 * arctan(239)


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_cosine_is_rounded_once(place: tuple[int, int]) -> None:
    x = pi().limit_denominator(10**60) * Fraction(*place)
    term, total = Fraction(1), Fraction(0)
    for k in range(1, 60, 2):
        total += term
        term = (term * -x * x / (k * (k + 1))).limit_denominator(10**60)
    assert cos_pi(*place) == float(total)  # Fraction's division of integers rounds once, to nearest even


def test_cosines_that_are_exact() -> None:
    assert [cos_pi(k, 6) for k in (0, 2, 3, 4, 6)] == [1.0, 0.5, 0.0, -0.5, -1.0]


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_broken_power_is_rounded_once(a: int, b: int) -> None:
    root = rational_power(a, b, 0.5)
    below, above = (Fraction(math.nextafter(root, side)) + Fraction(root) for side in (0.0, math.inf))
    assert (below / 2) ** 2 < Fraction(a, b) < (above / 2) ** 2


def test_where_schedules_begin_and_end() -> None:
    assert [Constant()(step) for step in (0, 9)] == [1.0, 1.0]
    warm = WarmUp(4, Polynomial(2))
    assert [warm(step) for step in range(8)] == [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert [Cosine(6, end=0.5)(step) for step in (0, 2, 3, 4, 6, 99)] == [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    assert [Polynomial(4, 2.0)(step) for step in range(6)] == [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    assert Polynomial(4, 0.5)(3) == 0.5
    assert [Step(2, 0.5)(step) for step in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert [MultiStep((2, 3), 0.5)(step) for step in range(5)] == [1.0, 1.0, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("kind", [SGD, Adam, torch.optim.SGD])
def test_set_lr_is_lambda_lr_without_memory(kind: type[torch.optim.Optimizer]) -> None:
    schedule = WarmUp(3, Cosine(7, end=0.1))
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.1, 0.3)]
    optimizer = kind(groups, lr=1.0)  # type: ignore[call-arg]  # the kinds above have one
    rates = []
    for step in (5, 0, *range(12)):  # a restored run begins anywhere
        set_lr(optimizer, schedule, step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == rates[7]
    set_lr(optimizer, schedule, 0)
    plain = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for expected in rates[2:]:
        assert plain.get_last_lr() == expected
        optimizer.step()
        plain.step()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"^Cosine: steps must be an int of at least 1, not 0"):
        Cosine(0)
    with pytest.raises(ValueError, match=r"^MultiStep: milestone 1 must be an int of at least 1, not 2.5"):
        MultiStep((1, 2.5))  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match=r"^Step: gamma must be finite"):
        Step(1, float("nan"))
    with pytest.raises(ValueError, match=r"^set_lr: step must be at least 0, not -1"):
        set_lr(SGD([torch.zeros(1)], lr=0.1), Constant(), -1)
