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


def test_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="needs objects"):
        ClassImages(np.array([0, 0]), np.zeros(0, dtype=np.int32), 2, per_class=1)
    with pytest.raises(ValueError, match="per_class"):
        ClassImages(START, LABELS, 4, per_class=0)
