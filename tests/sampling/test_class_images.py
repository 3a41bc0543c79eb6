"""So many pictures of every class."""

from __future__ import annotations

import numpy as np
import pytest

from longtail.sampling.class_images import ClassImages

START = np.array([0, 2, 2, 3, 6])  # picture 1 is empty
LABELS = np.array([3, 1, 1, 1, 0, 0], dtype=np.int32)  # class 2 has no picture


def test_by_hand() -> None:
    """Class 3 first, then 1 (pictures 0, 2, 3), then 0 (picture 3)."""
    found = ClassImages(START, LABELS, 4, per_class=2)
    assert found.epoch(0).tolist() == [0, 0, 0, 2, 3, 3]
    assert ClassImages(START, LABELS, 4, per_class=4).epoch(7).tolist() == [0] * 4 + [0, 2, 3, 0] + [3] * 4
    assert found.describe() == "2 images of each of 3 classes"


def test_at_random() -> None:
    """300 pictures of class 0, the last 2 of class 1 as well."""
    start, labels = np.append(np.arange(299), [300, 302]), np.zeros(302, dtype=np.int32)
    labels[[299, 301]] = 1

    def drawn(seed: int, per_class: int = 5) -> list[int]:
        sampler = ClassImages(start, labels, 2, per_class=per_class, choice="random", seed=seed)
        assert sampler.epoch(0).tolist() == sampler.epoch(3).tolist()
        return sampler.epoch(0).tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1)[:5] != drawn(2)[:5]
    assert drawn(1)[5:] in ([298, 299, 298, 299, 298], [299, 298, 299, 298, 299])
    assert sorted(drawn(4, per_class=300)[:300]) == list(range(300)), "none twice while there are others"
    often = np.bincount(np.concatenate([drawn(seed)[:5] for seed in range(1200)]), minlength=300)
    assert abs(often - 20).max() < 20, "every picture equally often: 20 of 6,000 draws, deviation 4.5"
    text = ClassImages(start, labels, 2, per_class=5, choice="random").describe()
    assert text == "5 random images of each of 2 classes"


def test_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="needs objects"):
        ClassImages(np.array([0, 0]), np.zeros(0, dtype=np.int32), 2, per_class=1)
    with pytest.raises(ValueError, match="per_class"):
        ClassImages(START, LABELS, 4, per_class=0)
