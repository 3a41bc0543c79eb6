"""VOC average precision against loops that follow the development kit's rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longtail.evaluation import DetectionTable, voc
from longtail.evaluation.pascal_voc import area_under, eleven_points, pixel_overlap
from longtail.schema.errors import UsageError


def inclusive_overlap(first: list[float], second: list[float]) -> float:
    """Overlap of boxes given by their first and last pixels, as VOC's files have them."""
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def pixels(box: Any) -> list[float]:
    """First and last pixel, counted from 1."""
    x, y, width, height = (float(value) for value in box)
    return [x + 1, y + 1, x + width, y + height]


def oracle(found: DetectionTable, truth: Any, label: int) -> tuple[float, float] | None:
    """Area and 11-point AP of one class."""
    objects = [row for row in range(len(truth.label)) if truth.label[row] == label]
    difficult = {row for row in objects if truth.ignore[row] or truth.iscrowd[row]}
    if len(objects) == len(difficult):
        return None
    ids = truth.image_ids.tolist()
    rows = [row for row in range(len(found)) if found.label[row] == label]
    rows.sort(key=lambda row: (-found.score[row], ids[found.image_index[row]]))
    taken: set[int] = set()
    true = false = 0
    recall, precision = [], []
    for row in rows:
        best, best_object = 0.0, -1
        for candidate in objects:
            if truth.image_index[candidate] == found.image_index[row]:
                overlap = inclusive_overlap(pixels(found.boxes[row]), pixels(truth.boxes_xywh[candidate]))
                if overlap > best:
                    best, best_object = overlap, candidate
        if best > 0.5 and best_object in difficult:
            pass
        elif best > 0.5 and best_object not in taken:
            taken.add(best_object)
            true += 1
        else:
            false += 1
        recall.append(true / (len(objects) - len(difficult)))
        precision.append(true / (true + false) if true + false else 0.0)
    eleven = 0.0
    for level in np.arange(0.0, 1.1, 0.1):
        eleven += max((p for r, p in zip(recall, precision, strict=True) if r >= level), default=0.0) / 11
    area, before = 0.0, 0.0
    for position, reached in enumerate(recall):
        area += (reached - before) * max(precision[position:])
        before = reached
    return area, eleven


@pytest.mark.parametrize("seed", range(30))
def test_equals_loops(seed: int, load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(6000 + seed, iou_type="bbox", crowds=True)
    for annotation in dataset["annotations"]:
        annotation["ignore"] = int(annotation["id"] % 6 == 0)
        if seed % 2:
            annotation["bbox"] = [round(value) + 1 for value in annotation["bbox"]]
    for entry in results:
        if seed % 2:
            entry["bbox"] = [round(value) + 1 for value in entry["bbox"]]
    truth = load(dataset)
    found = DetectionTable.from_coco_results(results, truth)
    result = voc(found, truth)
    expected = [oracle(found, truth, label) for label in range(truth.num_classes)]
    for row, pair in zip(result.per_class.values(), expected, strict=True):
        assert row.ap == (None if pair is None else pytest.approx(pair[0], abs=1e-9))
    measured = [pair for pair in expected if pair is not None]
    if measured:
        assert result.metrics["AP"] == pytest.approx(np.mean([pair[0] for pair in measured]), abs=1e-9)
        assert result.metrics["AP50_11point"] == pytest.approx(np.mean([pair[1] for pair in measured]), abs=1e-9)
        assert result.metrics["AP50"] == result.metrics["AP"]
    assert result.classes_behind["AP"] == {"classes": truth.num_classes, "with_objects": len(measured)}


def one_image(load: Any, boxes: list[list[float]], difficult: tuple[int, ...] = ()) -> Any:
    annotations = [
        {"id": row + 1, "image_id": 5, "category_id": 1, "bbox": box, "area": 1.0, "ignore": int(row in difficult)}
        for row, box in enumerate(boxes)
    ]
    image = {"id": 5, "height": 100, "width": 100, "file_name": "a.jpg"}
    return load({"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": annotations})


def found_boxes(*boxes: list[float]) -> DetectionTable:
    rows = len(boxes)
    scores = np.linspace(0.9, 0.5, rows)
    return DetectionTable(np.zeros(rows, int), np.zeros(rows, int), scores, np.array(boxes))


def test_an_overlap_of_exactly_one_half_is_no_hit(load: Any) -> None:
    truth = one_image(load, [[0, 0, 10, 10]])
    assert voc(found_boxes([0, 0, 10, 5]), truth).metrics["AP"] == 0
    assert voc(found_boxes([0, 0, 10, 6]), truth).metrics["AP"] == 1


def test_only_the_best_overlapping_object_is_looked_at(load: Any) -> None:
    """The second detection overlaps the first object best, which is taken: COCO would give it the other one."""
    truth = one_image(load, [[0, 0, 10, 10], [0, 2, 10, 10]])
    found = found_boxes([0, 0, 10, 10], [0, 0.5, 10, 10])
    assert voc(found, truth).metrics["AP"] == pytest.approx(0.5)
    assert voc(found, truth).metrics["AR"] == pytest.approx(0.5)


def test_of_equal_overlaps_the_first_object_is_looked_at(load: Any) -> None:
    twins = [[0, 0, 10, 10], [0, 0, 10, 10]]
    found = found_boxes([0, 0, 10, 10])
    assert voc(found, one_image(load, twins, difficult=(1,))).metrics["AP"] == 1
    assert voc(found, one_image(load, twins, difficult=(0,))).metrics["AP"] == 0


def test_difficult_objects_count_neither_way(load: Any) -> None:
    truth = one_image(load, [[0, 0, 10, 10], [50, 50, 10, 10]], difficult=(0,))
    result = voc(found_boxes([0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 10, 10]), truth)
    assert result.metrics["AP"] == 1
    assert result.per_class[1].objects == 1


def test_a_box_from_voc_corners_overlaps_as_many_pixels_as_it_covers() -> None:
    first, second = np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 2, 2]])  # pixels 1-2 and 2-3 across
    assert pixel_overlap(first, second) == pytest.approx(inclusive_overlap([1, 1, 2, 2], [2, 1, 3, 2]))
    assert pixel_overlap(first, second) == pytest.approx(1 / 3)
    assert pixel_overlap(first, np.array([[2.0, 0, 2, 2]])) == 0


def test_known_curve() -> None:
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    assert area_under(recall, precision) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert eleven_points(recall, precision) == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_masks_are_refused(load: Any) -> None:
    with pytest.raises(UsageError, match="boxes alone"):
        voc(found_boxes([0, 0, 10, 10]), one_image(load, [[0, 0, 10, 10]]), iou_type="segm")
