"""Profiles of long-tailed parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.data.long_tail import choose_rows, profile_counts
from longtail.schema import UsageError


def test_sizes_of_the_usual_sets() -> None:
    """Of CIFAR-100 with imbalance 100: 500 down to 5, 10,847 pictures in all; of CIFAR-10: 5,000 to 50, 12,406."""
    hundred = profile_counts(500, 100, imbalance=100)
    assert (hundred[0], hundred[-1], hundred.sum()) == (500, 5, 10_847)
    ten = profile_counts(5000, 10, imbalance=100)
    assert (ten[0], ten[-1], ten.sum()) == (5000, 50, 12_406)
    assert profile_counts(500, 4, imbalance=10, profile="step").tolist() == [500, 500, 50, 50]
    assert profile_counts(7, 3, imbalance=1).tolist() == [7, 7, 7]


@settings(max_examples=40, deadline=None)
@given(st.integers(50, 5000), st.integers(1, 60), st.floats(1, 50), st.sampled_from(["exponential", "step"]))
def test_counts_fall(most, classes, imbalance, profile) -> None:
    found = profile_counts(most, classes, imbalance=imbalance, profile=profile)
    assert len(found) == classes
    assert (np.diff(found) <= 0).all()
    assert found[0] <= most
    assert found[-1] >= most / imbalance - 1


def test_rows_are_of_the_right_classes_and_repeatable() -> None:
    labels = np.random.default_rng(1).integers(0, 4, 200)
    counts = np.array([20, 10, 5, 1])
    rows = choose_rows(labels, counts, seed=3)
    assert np.bincount(labels[rows]).tolist() == counts.tolist()
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, choose_rows(labels, counts, seed=3))
    assert not np.array_equal(rows, choose_rows(labels, counts, seed=4))


def test_refuses() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        profile_counts(10, 3, imbalance=0.5)
    with pytest.raises(UsageError, match="leaves nothing"):
        profile_counts(10, 3, imbalance=100)
    with pytest.raises(UsageError, match="class 1 has 1 pictures"):
        choose_rows(np.array([0, 0, 1]), np.array([1, 2]))
