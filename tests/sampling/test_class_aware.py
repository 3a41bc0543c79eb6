"""Class-aware sampling: classes in turn, each with its own list of pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.sampling import ClassAwareSampler

Pictures = list[list[int]]


def columns(pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
    start = np.concatenate(([0], np.cumsum([len(labels) for labels in pictures]))).astype(np.int64)
    return start, np.array([label for labels in pictures for label in labels], dtype=np.int32)


worlds = st.integers(1, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes), st.lists(st.lists(st.integers(0, classes - 1), max_size=6), min_size=1, max_size=15)
    )
)


@given(world=worlds, seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_class_aware_visits_classes_equally(world: tuple[int, Pictures], seed: int) -> None:
    classes, pictures = world
    start, labels = columns(pictures)
    if not len(labels):
        return
    length = 4 * classes + 1
    rows = ClassAwareSampler(start, labels, classes, seed=seed, length=length).epoch(0)
    assert len(rows) == length
    present = sorted(set(labels.tolist()))
    assert all(pictures[row] for row in rows), "pictures without objects do not occur"
    # in every full cycle each class is visited once: its picture holds it, so a perfect assignment exists
    for cycle in range(length // len(present)):
        visited = [set(pictures[row]) for row in rows[cycle * len(present) : (cycle + 1) * len(present)]]
        for c in present:
            assert any(c in labels_ for labels_ in visited)


def test_class_aware_uses_every_picture_of_a_class_before_it_repeats_one() -> None:
    start, labels = columns([[0], [0], [0], [1]])
    rows = ClassAwareSampler(start, labels, 2, seed=0, length=12).epoch(0)
    counts = np.bincount(rows, minlength=4)
    assert counts.tolist() == [2, 2, 2, 6]


def test_an_epoch_is_as_long_as_the_data_set() -> None:
    start, labels = columns([[0], [], [], [1, 1], []])
    sampler = ClassAwareSampler(start, labels, 4, seed=0)
    rows = sampler.epoch(0)
    assert len(rows) == 5
    assert set(rows.tolist()) == {0, 3}
    assert len({tuple(sampler.epoch(epoch).tolist()) for epoch in range(8)}) > 1


def test_a_set_without_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one object"):
        ClassAwareSampler(np.array([0, 0]), np.zeros(0, np.int32), 2, seed=0)


def test_the_list_of_a_class_is_shuffled_again_in_every_round() -> None:
    start, labels = columns([[0]] * 8)
    rounds = ClassAwareSampler(start, labels, 1, seed=0, length=32).epoch(0).reshape(4, 8)
    assert all(sorted(turn) == list(range(8)) for turn in rounds.tolist())
    assert len({tuple(turn) for turn in rounds.tolist()}) == 4
