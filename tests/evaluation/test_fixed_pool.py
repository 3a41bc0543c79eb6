"""AP^Fixed and AP^Pool against loops over the reference's own matching."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longtail.evaluation import DetectionTable, fixed, pool

EXACT = 1e-9


def best_of_each_class(results: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The best ``limit`` of every class, ties in file order, without sorting tricks."""
    kept = []
    for row, entry in enumerate(results):
        before = 0
        for other_row, other in enumerate(results):
            if other["category_id"] == entry["category_id"]:
                better = other["score"] > entry["score"]
                before += better or (other["score"] == entry["score"] and other_row < row)
        if before < limit:
            kept.append(entry)
    return kept


def pooled_ap(evaluator: Any, class_numbers: list[int]) -> float | None:
    """One precision-recall curve over all matches of some classes, counted one detection at a time."""
    num_images = len(evaluator.params.img_ids)
    sizes = len(evaluator.params.area_rng)
    ranked: list[tuple[float, list[bool], list[bool]]] = []
    objects = 0
    for image in range(num_images):
        for number in class_numbers:
            matched = evaluator.eval_imgs[number * sizes * num_images + image]
            if matched is None:
                continue
            objects += int((np.asarray(matched["gt_ignore"]) == 0).sum())
            for rank, score in enumerate(matched["dt_scores"]):
                hit = [bool(value) for value in matched["dt_matches"][:, rank]]
                ignored = [bool(value) for value in matched["dt_ignore"][:, rank]]
                ranked.append((score, hit, ignored))
    if objects == 0:
        return None
    ranked.sort(key=lambda entry: -entry[0])
    values = []
    for threshold in range(10):
        true = false = 0
        points = []
        for _, hit, ignored in ranked:
            true += hit[threshold] and not ignored[threshold]
            false += not hit[threshold] and not ignored[threshold]
            points.append((true / objects, true / (true + false + np.spacing(1))))
        for level in np.linspace(0, 1, 101):
            values.append(max((precision for recall, precision in points if recall >= level), default=0.0))
    return float(np.mean(values))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(15))
def test_fixed_and_pool_equal_loops(seed: int, iou_type: str, load: Any, random_problem: Any, reference: Any) -> None:
    dataset, results = random_problem(5000 + seed, iou_type=iou_type)
    if seed % 3 == 0:  # a class order that is not that of the file
        dataset["categories"].reverse()
    cap = (10_000, 6, 2)[seed % 3]
    truth = load(dataset)
    found = DetectionTable.from_coco_results(results, truth)
    by_id = {category["id"]: category["frequency"] for category in dataset["categories"]}
    letters = [by_id[category_id] for category_id in truth.category_ids.tolist()]
    theirs = reference.lvis(dataset, best_of_each_class(results, cap), iou_type=iou_type, cap=-1)

    ours = fixed(found, truth, iou_type=iou_type, groups=letters, max_detections=cap)
    for name, value in theirs.results.items():
        if "@" not in name:
            assert ours.metrics[name] == (None if value == -1 else pytest.approx(value, abs=EXACT)), name

    together = pool(found, truth, iou_type=iou_type, groups=letters, max_detections=cap)
    ordered = [by_id[category_id] for category_id in theirs.params.cat_ids]
    for name, group in (("AP", "rcf"), ("APr", "r"), ("APc", "c"), ("APf", "f")):
        expected = pooled_ap(theirs, [number for number, letter in enumerate(ordered) if letter in group])
        assert together.metrics[name] == (None if expected is None else pytest.approx(expected, abs=EXACT)), name
    assert together.classes_behind["AP"] == ours.classes_behind["AP"]
    assert together.classes_behind["APr"] == ours.classes_behind["APr"]


def test_pool_ranks_equal_scores_by_class_id_whatever_the_label_order(load: Any, random_problem: Any) -> None:
    for seed in range(10):
        dataset, results = random_problem(5100 + seed, iou_type="bbox")
        for number, category in enumerate(dataset["categories"]):
            category["name"] = f"class {number}"
        truth = load(dataset)
        found = DetectionTable.from_coco_results(results, truth)
        order = np.random.default_rng(seed).permutation(truth.num_classes)
        new_label = np.argsort(order)
        classes = type(truth.classes)(
            [truth.category_ids.tolist()[row] for row in order], [truth.category_names[row] for row in order], "other"
        )
        moved = truth.relabelled(new_label, classes)
        again = DetectionTable(found.image_index, new_label[found.label], found.score, found.boxes)
        letters = [category["frequency"] for category in dataset["categories"]]
        expected = pool(found, truth, groups=letters).metrics
        assert pool(again, moved, groups=[letters[row] for row in order]).metrics == expected


def test_pool_counts_false_positives_of_classes_that_are_only_verified_absent(load: Any) -> None:
    image = {"id": 1, "height": 90, "width": 90, "file_name": "a.jpg", "not_exhaustive_category_ids": []}
    dataset = {
        "images": [image | {"neg_category_ids": [2]}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}],
    }
    truth = load(dataset)
    boxes = np.array([[0, 0, 9, 9], [50, 50, 9, 9.0]])
    found = DetectionTable(np.array([0, 0]), np.array([0, 1]), np.array([0.5, 0.9]), boxes)
    assert fixed(found, truth).metrics["AP"] == pytest.approx(1)
    assert pool(found, truth).metrics["AP"] == pytest.approx(0.5)


def test_notes_say_when_the_value_may_be_too_low(load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(5002, iou_type="bbox")
    truth = load(dataset)
    result = fixed(DetectionTable.from_coco_results(results, truth), truth)
    assert result.settings["caps"] == {"per_class": 10_000}
    assert any("fewer than 10000 detections" in note for note in result.notes)
    assert any("limited per image" in note for note in result.notes)


def test_files_without_lists_know_every_class_in_every_image(load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(5003, iou_type="bbox")
    for image in dataset["images"]:
        image["neg_category_ids"] = [category["id"] for category in dataset["categories"]]
        image["not_exhaustive_category_ids"] = []
    listed = load(dataset)
    found = DetectionTable.from_coco_results(results, listed)
    with_lists = [protocol(found, listed) for protocol in (fixed, pool)]
    for image in dataset["images"]:
        del image["neg_category_ids"]
    plain = load(dataset)
    for protocol, expected in zip((fixed, pool), with_lists, strict=True):
        result = protocol(found, plain)
        assert result.metrics == expected.metrics
        assert any("every class counts as known" in note for note in result.notes)
