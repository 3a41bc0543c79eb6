"""Precision with errors removed: hand-made pictures, and a loop-by-loop oracle on random ones."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.data import AnnotationTable
from longtail.evaluation import DetectionTable, coco
from longtail.evaluation.removed_errors import KINDS, RECALLS, box_iou, precision_at_recalls, remove_errors

SQUARE = {"big": (0.0, 0.0, 40.0, 40.0), "far": (60.0, 60.0, 30.0, 30.0)}


def table(objects: list[tuple[int, int, tuple[float, float, float, float]]], *, images: int, classes: int):
    """(image, class, box) -> annotations."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in range(images)],
        "categories": [{"id": c, "name": str(c)} for c in range(classes)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
            for n, (i, c, box) in enumerate(objects)
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(content))
        return AnnotationTable.from_coco(path)


def found(rows: list[tuple[int, int, float, tuple[float, float, float, float]]]) -> DetectionTable:
    """(image, class, score, box) -> detections."""
    return DetectionTable(
        image_index=np.array([row[0] for row in rows], np.int64),
        label=np.array([row[1] for row in rows], np.int64),
        score=np.array([row[2] for row in rows]),
        boxes=np.array([row[3] for row in rows], np.float64).reshape(-1, 4),
        rles=None,
    )


def test_every_kind_of_error_is_removed_in_its_turn() -> None:
    truth = table([(0, 0, SQUARE["big"]), (0, 1, SQUARE["far"]), (1, 2, SQUARE["far"])], images=2, classes=3)
    detections = found(
        [
            (0, 0, 0.9, SQUARE["far"]),  # on an object of class 1, similar
            (1, 0, 0.8, SQUARE["far"]),  # on an object of class 2, not similar
            (1, 0, 0.7, (0.0, 0.0, 20.0, 20.0)),  # on nothing
            (0, 0, 0.6, (0.0, 0.0, 40.0, 12.0)),  # IoU 0.3 with its object
        ]
    )
    curves = remove_errors(detections, truth, supercategory=["a", "a", "b"])
    assert curves.grouped and curves.classes == 3
    # classes 1 and 2 have objects and no detections: 0 for all kinds but the last, and for BG, which keeps misses
    areas = {kind: 3 * value for kind, value in curves.areas().items()}
    assert areas == pytest.approx({"C75": 0, "C50": 0, "Loc": 1 / 4, "Sim": 1 / 3, "Oth": 1 / 2, "BG": 1, "FN": 3})
    ungrouped = remove_errors(detections, truth)
    assert not ungrouped.grouped
    assert np.array_equal(ungrouped.precision["Sim"], ungrouped.precision["Loc"])


def test_without_detections_and_without_objects() -> None:
    truth = table([(0, 0, SQUARE["big"])], images=1, classes=2)
    none = remove_errors(found([]), truth)
    assert none.areas() == {kind: float(kind == "FN") for kind in KINDS}
    empty = remove_errors(found([]), table([], images=1, classes=2))
    assert empty.classes == 0
    assert set(empty.areas().values()) == {0.0}


boxes = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(5, 40), st.integers(5, 40)).map(
    lambda box: tuple(map(float, box))
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), boxes), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 99), boxes), max_size=12),
)
def test_order_and_average_precision(objects, rows) -> None:
    truth = table(objects, images=3, classes=4)
    detections = found([(i, c, score / 100, box) for i, c, score, box in rows])
    curves = remove_errors(detections, truth, supercategory=["a", "a", "b", "b"])
    metrics = coco(detections, truth).metrics
    assert curves.areas()["C50"] == pytest.approx(metrics["AP50"], abs=1e-12)
    assert curves.areas()["C75"] == pytest.approx(metrics["AP75"], abs=1e-12)
    for weaker, stronger in itertools.pairwise(KINDS):
        assert (curves.precision[weaker] <= curves.precision[stronger] + 1e-12).all()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=10), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_precision_at_recalls_is_the_loop(flags, objects) -> None:
    kept = [hit for hit, out in flags if not out]
    objects = max(objects, sum(kept))
    points = [(sum(kept[: n + 1]) / objects, sum(kept[: n + 1]) / (n + 1)) for n in range(len(kept))]
    expected = [max((p for r, p in points if r >= recall), default=0.0) for recall in RECALLS]
    given = precision_at_recalls(np.array([f[0] for f in flags], bool), np.array([f[1] for f in flags], bool), objects)
    assert np.allclose(given, expected, atol=1e-12)


def test_box_iou() -> None:
    one = np.array([[0.0, 0, 10, 10]])
    other = np.array([[0.0, 0, 10, 5], [5, 5, 10, 10], [20, 20, 1, 1]])
    assert box_iou(one, other)[0] == pytest.approx([0.5, 25 / 175, 0])
