"""Bi-level sampling: a class, then one of its pictures."""

import numpy as np
import pytest

from longtail.sampling import BiLevelSampler, UniformSampler

PICTURES = [[0, 0, 1], [1], [], [0], [3], [3, 0]]  # classes of the objects; class 2 has none
START = np.concatenate(([0], np.cumsum([len(own) for own in PICTURES]))).astype(np.int64)
LABELS = np.array([label for own in PICTURES for label in own], dtype=np.int32)


def sampler(**options: int) -> BiLevelSampler:
    return BiLevelSampler(START, LABELS, 4, **{"seed": 3, **options})


def test_every_picture_shows_the_class_it_was_drawn_for() -> None:
    rows, labels = sampler(length=200).epoch(1), sampler(length=200).labels(1)
    assert len(rows) == len(labels) == 200
    assert all(label in PICTURES[row] for row, label in zip(rows, labels, strict=True))
    assert set(labels.tolist()) == {0, 1, 3}


def test_classes_and_their_pictures_are_drawn_evenly() -> None:
    rows, labels = sampler(length=9000).epoch(0), sampler(length=9000).labels(0)
    assert np.abs(np.bincount(labels, minlength=4) - [3000, 3000, 0, 3000]).max() < 200  # 45 is one standard deviation
    of_class_0 = np.bincount(rows[labels == 0], minlength=6)
    assert np.abs(of_class_0 - np.array([1, 0, 0, 1, 0, 1]) * of_class_0.sum() / 3).max() < 130  # five of 26


def test_classes_are_drawn_with_replacement() -> None:
    drawn = sampler(length=30).labels(0).reshape(10, 3)
    assert any(len(set(step)) < 3 for step in drawn.tolist())


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    assert np.array_equal(sampler().epoch(4), sampler().epoch(4))
    assert not np.array_equal(sampler(length=50).labels(4), sampler(length=50).labels(5))
    assert not np.array_equal(sampler(length=50).labels(4), sampler(length=50, seed=4).labels(4))
    assert len(sampler().epoch(0)) == len(PICTURES)


def test_other_samplers_draw_for_no_class() -> None:
    assert UniformSampler(3, seed=0).labels(0) is None


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one object"):
        BiLevelSampler(np.array([0, 0]), np.array([], dtype=np.int32), 2, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        sampler(length=0)
