"""Several sources in a fixed ratio, in every stretch, whatever samples inside."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.sampling import ClassAwareSampler, ImageSampler, RepeatFactorSampler, SourceSampler, UniformSampler
from longtail.sampling.sources import WeightedSource, take_turns

weights = st.lists(st.floats(0.05, 20), min_size=2, max_size=4)


def mixed(sizes: list[int], given: list[float], seed: int = 0) -> SourceSampler:
    ends = np.cumsum([0, *sizes])
    rows = [np.arange(first, last) for first, last in itertools.pairwise(ends.tolist())]
    samplers = [UniformSampler(size, seed=seed) for size in sizes]
    names = [f"s{number}" for number in range(len(sizes))]
    return SourceSampler([WeightedSource(*each) for each in zip(names, rows, samplers, given, strict=True)], seed=seed)


@settings(max_examples=60, deadline=None)
@given(given=weights, length=st.integers(0, 150))
def test_every_stretch_has_the_ratio(given: list[float], length: int) -> None:
    shares = np.array(given) / sum(given)
    turns = take_turns(shares, length)
    counts = np.cumsum(turns[:, None] == np.arange(len(shares)), axis=0)
    ideal = np.arange(1, length + 1)[:, None] * shares
    assert (np.abs(counts - ideal) < 1).all()
    padded = np.concatenate((np.zeros((1, len(shares)), int), counts))
    for size in {1, 2, 4, 7, 16, length} - {0}:
        stretch = padded[size:] - padded[:-size]
        limit = 1 if len(shares) == 2 else 2
        assert (np.abs(stretch - size * shares) < limit + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=3), given=weights, seed=st.integers(0, 9))
def test_rows_belong_to_their_source_and_epochs_are_pure(sizes: list[int], given: list[float], seed: int) -> None:
    given = (given * 2)[: len(sizes)]
    sampler = mixed(sizes, given, seed)
    rows = sampler.epoch(3)
    assert len(rows) == sum(sizes)
    assert np.array_equal(rows, mixed(sizes, given, seed).epoch(3))
    source = np.searchsorted(np.cumsum(sizes), rows, side="right")
    assert np.array_equal(source, take_turns(sampler.shares, len(rows)))
    for number, size in enumerate(sizes):
        own = rows[source == number]
        times = np.bincount(own - sum(sizes[:number]), minlength=size)
        assert times.max() - times.min() <= 1, "every image of a source once before any of them twice"


def test_two_epochs_differ() -> None:
    sampler = mixed([30, 30], [1, 1])
    assert not np.array_equal(sampler.epoch(0), sampler.epoch(1))


def test_a_small_source_is_shuffled_anew_every_time_round() -> None:
    rows = mixed([5, 95], [1, 1]).epoch(0)
    rounds = rows[rows < 5].reshape(-1, 5).tolist()
    assert len(rounds) == 10 and all(sorted(each) == [0, 1, 2, 3, 4] for each in rounds)
    assert len(set(map(tuple, rounds))) > 1


def test_batches_of_four_at_three_to_one() -> None:
    counts = (mixed([50, 200], [3, 1]).epoch(0)[:248].reshape(-1, 4) >= 50).sum(axis=1)
    assert (counts == 1).all()


@pytest.mark.parametrize("kind", ["repeat_factor", "class_aware"])
def test_other_samplers_inside(kind: str) -> None:
    start = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    labels = np.array([0] * 9 + [1], dtype=np.int32)
    inner: ImageSampler
    if kind == "repeat_factor":
        inner = RepeatFactorSampler(start, labels, 2, seed=0, threshold=0.9, rounding="ceil")
    else:
        inner = ClassAwareSampler(start, labels, 2, seed=0)
    other = UniformSampler(5, seed=0)
    sampler = SourceSampler(
        [WeightedSource("a", np.arange(10), inner, 1), WeightedSource("b", np.arange(10, 15), other, 1)], seed=0
    )
    rows = sampler.epoch(0)
    assert len(rows) == len(inner.epoch(0)) + 5
    assert abs((rows < 10).sum() - len(rows) / 2) < 1
    own = rows[rows < 10]
    assert (own == 9).sum() > 1, "the rare class is repeated"


def test_one_source_and_what_is_refused() -> None:
    alone = mixed([4], [2.0])
    assert sorted(alone.epoch(0).tolist()) == [0, 1, 2, 3]
    for wrong in ([1, 0], [1, -1], [1, float("nan")], [1, float("inf")]):
        with pytest.raises(ValueError, match="above 0"):
            mixed([2, 2], wrong)
    with pytest.raises(ValueError, match="at least one picture"):
        SourceSampler([], seed=0)


def test_the_composition_is_said() -> None:
    text = mixed([50, 150], [3, 1]).describe()
    assert "s0 75.0% (holds 25.0%): uniform, 50 images" in text
    assert "s1 25.0% (holds 75.0%)" in text
