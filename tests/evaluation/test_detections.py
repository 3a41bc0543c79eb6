"""Caps, filters and joins of detections against loops over rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.evaluation import DetectionTable
from longtail.schema.errors import DataError, UsageError

rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), max_size=30)


def table(given_rows: list[tuple[int, int, int]], *, masks: bool = False) -> DetectionTable:
    """Rows of (image, class, score); the box remembers the row's number."""
    image, label, score = (np.array([row[column] for row in given_rows]) for column in range(3))
    boxes = np.array([[number, 0, 1, 1] for number in range(len(given_rows))], dtype=float).reshape(-1, 4)
    rles = [{"size": [1, 1], "counts": str(number).encode()} for number in range(len(given_rows))] if masks else None
    return DetectionTable(image, label, score, boxes, rles)


def numbers(found: DetectionTable) -> list[int]:
    return [int(box[0]) for box in found.boxes]


@settings(max_examples=50, deadline=None)
@given(rows, st.integers(1, 6))
def test_caps_keep_the_best_and_the_first_of_equals(given_rows: list[tuple[int, int, int]], limit: int) -> None:
    found = table(given_rows)
    for column, capped in ((0, found.cap_per_image(limit)), (1, found.cap_per_class(limit))):
        expected = []
        for number, row in enumerate(given_rows):
            rivals = [(other[2], -place) for place, other in enumerate(given_rows) if other[column] == row[column]]
            if sum(rival > (row[2], -number) for rival in rivals) < limit:
                expected.append(number)
        assert numbers(capped) == expected


@settings(max_examples=30, deadline=None)
@given(rows, rows)
def test_join_and_sort_keep_masks_with_their_rows(
    first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]
) -> None:
    joined = DetectionTable.concatenate([table(first, masks=True), table(second, masks=True)])
    expected = [*enumerate(first), *enumerate(second)]
    assert numbers(joined) == [number for number, _ in expected]
    ordered = joined.sort_by_image()
    expected.sort(key=lambda entry: entry[1][0])
    assert numbers(ordered) == [number for number, _ in expected]
    assert [int(rle["counts"]) for rle in ordered.rles or []] == numbers(ordered)
    assert ordered.score.tolist() == [row[2] for _, row in expected]


def test_federated_keeps_only_known_pairs(load: Any, random_problem: Any) -> None:
    for seed in range(10):
        dataset, results = random_problem(7000 + seed, iou_type="bbox")
        truth = load(dataset)
        found = DetectionTable.from_coco_results(results, truth)
        known = {(entry["image_id"], entry["category_id"]) for entry in dataset["annotations"]}
        known |= {(image["id"], label) for image in dataset["images"] for label in image["neg_category_ids"]}
        expected = [entry for entry in results if (entry["image_id"], entry["category_id"]) in known]
        assert found.federated(truth).to_coco_results(truth, "bbox") == expected


def test_columns_get_their_types() -> None:
    found = DetectionTable(
        np.array([0], np.int32), np.array([1], np.uint8), np.array([0.5], np.float32), np.zeros((1, 4), np.float32)
    )
    assert (found.image_index.dtype, found.label.dtype, found.score.dtype) == (np.int64, np.int64, np.float64)
    assert found.boxes.dtype == np.float64
    assert len(DetectionTable.empty()) == 0
    assert len(DetectionTable.concatenate([])) == 0
    assert len(DetectionTable.empty().cap_per_image(3)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": np.array([0.5, np.nan])}, "1 of 2 have a score that is NaN or infinite, the first in row 1"),
        ({"score": np.array([np.inf, 0.1])}, "row 0"),
        ({"boxes": np.array([[0, 0, 1, 1], [0, np.nan, 1, 1]])}, "box coordinate that is NaN"),
        ({"label": np.array([0, -1])}, "negative class index"),
        ({"image_index": np.array([-1, 0])}, "negative image index"),
        ({"label": np.array([0])}, "2 image indices but 1 rows of label"),
        ({"rles": [{}]}, "1 rows of rles"),
    ],
)
def test_bad_columns_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "image_index": np.array([0, 0]),
        "label": np.array([0, 0]),
        "score": np.array([0.5, 0.5]),
        "boxes": np.ones((2, 4)),
    }
    DetectionTable(**good)
    with pytest.raises(DataError, match=message):
        DetectionTable(**(good | change))


def test_dropped_counts_are_added_up_and_do_not_leak() -> None:
    flat = DetectionTable(np.zeros(2, int), np.zeros(2, int), np.ones(2), np.array([[0, 0, 0, 5], [0, 0, 5, 5.0]]))
    kept = flat.without_degenerate()
    assert (kept.dropped, flat.dropped) == ({"box without area": 1}, {})
    assert DetectionTable.concatenate([kept, kept]).dropped == {"box without area": 2}
    assert kept.without_degenerate() is kept


def test_misuse_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        table([(0, 0, 1)]).cap_per_class(0)
    with pytest.raises(UsageError, match="cannot join"):
        DetectionTable.concatenate([table([(0, 0, 1)]), table([(0, 0, 1)], masks=True)])
    joined = DetectionTable.concatenate([DetectionTable.empty(), table([(0, 0, 1)], masks=True)])
    assert joined.rles is not None
    assert len(joined) == 1
