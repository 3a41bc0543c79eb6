"""Paired differences: hand-made numbers, and what may be said about them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.reports.compare import STUDENT_T, difference, spread


def runs(values: list[float | None]) -> dict[int, dict[str, float | None]]:
    return {seed: {"APr": value} for seed, value in enumerate(values)}


def test_a_clear_gain() -> None:
    found = difference("APr", runs([0.255, 0.235, 0.252]), runs([0.172, 0.160, 0.190]))
    assert found.by_seed == pytest.approx({0: 0.083, 1: 0.075, 2: 0.062})
    assert found.mean == pytest.approx((0.083 + 0.075 + 0.062) / 3)
    deviation = math.sqrt(sum((d - 0.22 / 3) ** 2 for d in (0.083, 0.075, 0.062)) / 2)
    assert found.half_width == pytest.approx(4.303 * deviation / math.sqrt(3))
    assert found.verdict == "gain"


def test_the_same_with_the_sign_turned_is_a_loss() -> None:
    assert difference("APr", runs([0.172, 0.160, 0.190]), runs([0.255, 0.235, 0.252])).verdict == "loss"


def test_a_gain_inside_the_noise_is_no_difference() -> None:
    found = difference("APr", runs([0.20, 0.15, 0.18]), runs([0.15, 0.17, 0.17]))
    assert found.mean is not None
    assert found.mean > 0
    assert found.verdict.startswith("no difference")


def test_equal_runs_are_no_difference() -> None:
    assert difference("APr", runs([0.2, 0.3]), runs([0.2, 0.3])).verdict.startswith("no difference")


def test_one_seed_says_nothing() -> None:
    found = difference("APr", runs([0.9]), runs([0.1]))
    assert found.mean == pytest.approx(0.8)
    assert found.half_width is None
    assert found.verdict.startswith("one seed")


def test_only_common_seeds_with_values_count() -> None:
    found = difference("APr", {0: {"APr": 0.5}, 1: {"APr": None}, 2: {"APr": 0.6}}, runs([0.4, 0.3]))
    assert found.by_seed == pytest.approx({0: 0.1})
    assert difference("AP", runs([0.5]), runs([0.4])).verdict == "not comparable"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_differences_change_sign_when_the_roles_do(pairs: list[tuple[float, float]]) -> None:
    one, other = runs([pair[0] for pair in pairs]), runs([pair[1] for pair in pairs])
    there, back = difference("APr", one, other), difference("APr", other, one)
    assert there.mean is not None
    assert back.mean is not None
    assert there.half_width is not None
    assert there.mean == pytest.approx(-back.mean)
    assert there.half_width == pytest.approx(back.half_width)


def test_spread() -> None:
    assert spread("APr", runs([0.1, 0.3, None])) == pytest.approx((0.2, math.sqrt(0.02)))
    assert spread("APr", runs([0.1])) == (0.1, None)
    assert spread("APr", runs([None])) == (None, None)


def test_quantiles_fall() -> None:
    assert list(STUDENT_T) == sorted(STUDENT_T, reverse=True)
