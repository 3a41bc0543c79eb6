"""Step-wise repeat factors: the table of the released code, the length of an epoch, a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longtail.sampling import GroupRepeatFactorSampler

KT = {"thresholds": (0.0015, 0.0015, 0.0, 0.0), "exponents": (1.0, 1.0, 1.0, 1.0)}


def sampler(holding, images, image_counts, **options):
    """Every class k is in ``holding[k]`` images of its own, one object each, of ``images``."""
    labels = np.repeat(np.arange(len(holding)), holding).astype(np.int32)
    start = np.minimum(np.arange(images + 1), len(labels)).astype(np.int64)
    counts = np.array(image_counts)
    return GroupRepeatFactorSampler(start, labels, len(holding), image_counts=counts, seed=3, **options)


# one class of every group: rare, lower common, upper common, frequent
GROUPS = [1, 29, 100, 101]


def test_the_table_of_the_head_expert():
    holding, images = [1, 4, 6, 8], 10_000
    found = sampler(holding, images, GROUPS).factors.class_factors
    wanted = [max(1, (0.003 / (n / images)) ** p) for n, p in zip(holding[:3], (0.5, 0.5, 0.3), strict=True)]
    np.testing.assert_allclose(found, [*wanted, 1.0])
    assert found[2] == pytest.approx(5**0.3)


def test_the_table_of_the_knowledge_transfer():
    found = sampler([1, 4, 6, 8], 20_000, GROUPS, **KT)
    np.testing.assert_allclose(found.factors.class_factors, [30, 7.5, 1, 1])
    assert found.copies(found.generator(0))[[0, 1, 5, 11]].tolist() == [30, 8, 1, 1]  # exactly 30, not 31


def test_whole_factors_stay_whole() -> None:
    """0.05 / (5 / 700) is a little more than 7 in floating point."""
    found = sampler([5], 700, [5], edges=(9,), thresholds=(0.05, 0.0), exponents=(1.0, 1.0))
    assert found.factors.class_factors[0] > 7
    assert found.copies(found.generator(0))[0] == 7


def test_groups_are_those_of_the_whole_training_set():
    """The same pictures, but the class has more images elsewhere."""
    for count, factor in ((10, 30.0), (11, 30.0), (29, 30.0), (30, 1.0), (101, 1.0)):
        assert sampler([1, 5], 20_000, [count, 500], **KT).factors.class_factors[0] == pytest.approx(factor)


def test_against_a_loop():
    generator = np.random.default_rng(0)
    images, classes = 40, 6
    lists = [generator.integers(0, classes, generator.integers(0, 4)) for _ in range(images)]
    start = np.concatenate(([0], np.cumsum([len(own) for own in lists])))
    options = {"edges": (3, 9), "thresholds": (0.5, 0.4, 0.0), "exponents": (1.0, 0.5, 1.0)}
    counts = np.array([1, 2, 3, 8, 9, 20])
    found = GroupRepeatFactorSampler(
        start, np.concatenate(lists).astype(np.int32), classes, image_counts=counts, seed=0, **options
    )
    wanted = []
    for own in lists:
        factor = 1.0
        for label in own.tolist():
            group = 0 if counts[label] < 3 else 1 if counts[label] < 9 else 2
            frequency = sum(label in other for other in lists) / images
            limit, power = options["thresholds"][group], options["exponents"][group]
            factor = max(factor, (limit / frequency) ** power if limit else 1.0)
        wanted.append(math.ceil(factor))
    assert found.copies(found.generator(0)).tolist() == wanted
    whole = GroupRepeatFactorSampler(
        start, np.concatenate(lists).astype(np.int32), classes, image_counts=counts, seed=0,
        epoch_length="oversampled", **options,
    )  # fmt: skip
    assert np.bincount(whole.epoch(2), minlength=images).tolist() == wanted
    assert found.epoch(2).tolist() == whole.epoch(2)[:images].tolist()
    assert found.epoch(2).tolist() != found.epoch(3).tolist()


def test_refuses_groups_without_values():
    with pytest.raises(ValueError, match="4 groups"):
        sampler([1], 10, [1], thresholds=(0.1, 0.1))
