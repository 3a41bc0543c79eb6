"""The held-out part of a training set."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.data import AnnotationTable
from longtail.data.scenes import GeneratedSet
from longtail.sampling.holdout import holdout_images, smallest_class

CLASSES = 5
pictures = st.lists(st.lists(st.integers(0, CLASSES - 1), max_size=4), min_size=1, max_size=80)


def held_out(images: list[list[int]], fraction: float, seed: int) -> list[int]:
    index = np.array([row for row, labels in enumerate(images) for _ in labels], dtype=np.int32)
    label = np.array([label for labels in images for label in labels], dtype=np.int32)
    rows = holdout_images(index, label, num_images=len(images), num_classes=CLASSES, fraction=fraction, seed=seed)
    return rows.tolist()


@settings(max_examples=80, deadline=None)
@given(pictures, st.sampled_from([0.1, 0.2, 0.34, 0.5]), st.integers(0, 3))
def test_no_class_gives_more_than_its_share_and_no_image_more_could_be_taken(images, fraction, seed) -> None:
    found = held_out(images, fraction, seed)
    assert found == sorted(set(found)) == held_out(images, fraction, seed)
    holding = defaultdict(set)
    for row, labels in enumerate(images):
        for label in labels:
            holding[label].add(row)
    allowed = {label: math.floor(fraction * len(rows) + 1e-9) for label, rows in holding.items()}
    given_ = {label: len(rows & set(found)) for label, rows in holding.items()}
    for label, rows in holding.items():
        assert given_[label] <= allowed[label]
        if len(rows) < smallest_class(fraction):
            assert given_[label] == 0
    for row, labels in enumerate(images):
        if row not in found and labels:
            assert any(given_[label] == allowed[label] for label in labels), "this image could be held out, too"
    assert all(images[row] for row in found), "images without objects stay"


def test_smallest_class() -> None:
    assert [smallest_class(fraction) for fraction in (0.1, 0.05, 0.3, 0.5)] == [10, 20, 4, 2]


def test_another_seed_takes_others() -> None:
    images = [[row % 2] for row in range(60)]
    assert len(held_out(images, 0.1, 0)) == 6
    assert held_out(images, 0.1, 0) != held_out(images, 0.1, 1)


def test_about_a_tenth_of_the_classes_of_a_generated_set(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    rows = holdout_images(
        table.image_index, table.label, num_images=table.num_images, num_classes=12, fraction=0.1, seed=0
    )
    before, after = (part.statistics().image_counts for part in (table, table.select(rows)))
    enough = before >= 10
    assert (after[enough] > 0).all()
    assert not after[~enough].any()
    assert 0.05 < after[enough].sum() / before[enough].sum() <= 0.1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_is_between_0_and_1(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        held_out([[0]], fraction, 0)
