"""Each kind of error is told from the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longtail.evaluation import DetectionTable, analyse_errors, coco


def test_kinds_of_errors_and_confusions(load: Any) -> None:
    image = {"height": 200, "width": 200, "file_name": "a.jpg"}
    boxes = [[0, 0, 20, 20], [50, 50, 20, 20], [100, 100, 20, 20], [150, 150, 20, 20]]
    dataset = {
        "images": [image | {"id": 4}],
        "categories": [{"id": 30, "name": "same"}, {"id": 31, "name": "same"}],
        "annotations": [
            {"id": row, "image_id": 4, "category_id": 30 + row % 2, "bbox": box, "area": 400}
            for row, box in enumerate(boxes)
        ],
    }
    truth = load(dataset)
    found = DetectionTable(
        np.zeros(5, int),
        np.array([0, 0, 1, 0, 1]),
        np.array([0.9, 0.8, 0.7, 0.6, 0.1]),
        np.array([[0, 0, 20, 20], [0, 0, 20, 20], [100, 100, 20, 20], [0, 150, 9, 9], [0, 190, 9, 9.0]]),
    )
    errors = analyse_errors(found, truth)
    assert errors.ap50 == pytest.approx(coco(found, truth).metrics["AP50"])
    assert errors.counts["Dupe"] == 1
    assert errors.counts["Cls"] == 1
    assert errors.counts["Bkg"] == 2
    assert errors.counts["Miss"] == 2
    assert errors.lost["FN"] > 0
    assert (30, 31, 1) in errors.confusions
    assert all(true != detected for true, detected, _ in errors.confusions)
    assert (None, 30, 2) in errors.confusions
    assert (31, None, 2) in errors.confusions
    assert (None, 31, 1) not in errors.confusions  # below min_score
    assert errors.to_dict()["confusions"][0] == list(errors.confusions[0])


def test_nothing_to_find(load: Any) -> None:
    image = {"id": 1, "height": 20, "width": 20, "file_name": "a.jpg"}
    truth = load({"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": []})
    assert analyse_errors(DetectionTable.empty(), truth).ap50 is None
