"""Accuracy of picture classifiers, against a loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtail.data import AnnotationTable, ClassStatistics
from longtail.evaluation.classification import top1
from longtail.evaluation.result import EvaluationResult

IMAGES = np.array([150, 101, 100, 20, 19, 0])


@pytest.fixture
def truth(tmp_path: Path) -> AnnotationTable:
    for c, count in enumerate((4, 3, 2, 3, 2)):
        for n in range(count):
            path = tmp_path / f"class{c}" / f"{n}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
    return AnnotationTable.from_image_folder(tmp_path)


def test_is_the_loop(truth: AnnotationTable) -> None:
    statistics = ClassStatistics([f"class{c}" for c in range(5)], IMAGES[:5], IMAGES[:5], 390, 390)
    scores = np.random.default_rng(0).random((14, 5))
    found = top1(scores, truth, statistics)
    right: dict[int, list[bool]] = {c: [] for c in range(5)}
    for image, c in enumerate(truth.label.tolist()):
        right[c].append(max(range(5), key=lambda k: scores[image, k]) == c)
    per_class = {c: sum(hits) / len(hits) for c, hits in right.items()}
    assert found.metrics["top1"] == pytest.approx(sum(sum(hits) for hits in right.values()) / 14)
    assert found.metrics["balanced"] == pytest.approx(sum(per_class.values()) / 5)
    assert found.metrics["many"] == pytest.approx((per_class[0] + per_class[1]) / 2)
    assert found.metrics["medium"] == pytest.approx((per_class[2] + per_class[3]) / 2)
    assert found.metrics["few"] == pytest.approx(per_class[4])
    assert [row.ap for row in found.per_class.values()] == pytest.approx(list(per_class.values()))
    assert [row.objects for row in found.per_class.values()] == [4, 3, 2, 3, 2]
    assert found.headline == "top1"
    assert EvaluationResult.from_dict(found.to_dict()) == found


def test_groups_without_pictures_are_left_out(truth: AnnotationTable) -> None:
    many = np.full(5, 500)
    statistics = ClassStatistics([f"class{c}" for c in range(5)], many, many, 2500, 2500)
    found = top1(np.eye(5)[truth.label], truth, statistics)
    assert found.metrics == {"top1": 1.0, "balanced": 1.0, "many": 1.0, "medium": None, "few": None}
    assert found.classes_behind["few"] == {"classes": 0, "with_objects": 0}
