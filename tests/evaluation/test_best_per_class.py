"""The store keeps exactly what a cap on all detections together would keep."""

from __future__ import annotations

import numpy as np
import pytest

from longtail.evaluation import BestPerClass, DetectionTable


@pytest.mark.parametrize("seed", range(10))
def test_equals_the_cap_on_everything(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    rows, classes, limit = 400, 4, int(rng.integers(1, 60))
    image = np.sort(rng.integers(0, 30, rows))
    found = DetectionTable(
        image, rng.integers(0, classes, rows), rng.integers(1, 30, rows) / 30, rng.uniform(1, 9, (rows, 4))
    )
    store = BestPerClass(classes, limit=limit)
    for position, number in enumerate(rng.permutation(30)):  # images come back in any order
        store.add(found.select(found.image_index == number))
        if position % 5 == 0:
            store._prune()
    expected = found.cap_per_class(limit)
    kept = store.table()
    for column in ("image_index", "label", "score", "boxes"):
        assert (getattr(kept, column) == getattr(expected, column)).all()


def test_thresholds_rise_only_for_full_classes() -> None:
    store = BestPerClass(2, limit=2, floor=0.1)
    scores = np.array([0.5, 0.6, 0.7, 0.9, 0.05])
    store.add(DetectionTable(np.zeros(5, int), np.array([0, 0, 0, 1, 1]), scores, np.ones((5, 4))))
    assert len(store.table()) == 3
    assert store.thresholds.tolist() == [0.6, 0.1]


def test_pruning_happens_by_itself() -> None:
    store = BestPerClass(1, limit=10)
    rng = np.random.default_rng(0)
    for image in range(30):
        rows = 10_000
        store.add(DetectionTable(np.full(rows, image), np.zeros(rows, int), rng.random(rows), np.ones((rows, 4))))
    assert store.thresholds[0] > 0.999
    assert len(store.table()) == 10
