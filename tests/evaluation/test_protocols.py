"""LVIS and COCO numbers equal the reference packages' on random problems; rules of the other protocols."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest

from longtail.data.statistics import ClassStatistics
from longtail.evaluation import DetectionTable, bins, coco, evaluate, fixed, lvis, proposals
from longtail.schema.errors import DataError, UsageError

EXACT = 1e-9


def letters(dataset: dict[str, Any]) -> list[str]:
    return [category["frequency"] for category in dataset["categories"]]


def assert_equal_metrics(ours: dict[str, float | None], theirs: dict[str, float]) -> None:
    for name, value in theirs.items():
        expected = None if value == -1 else pytest.approx(value, abs=EXACT)
        assert ours[name] == expected, name


def assert_equal_classes(result: Any, precision: np.ndarray, recall: np.ndarray) -> None:
    """``precision`` (T, R, C) and ``recall`` (T, C) of a reference."""
    for number, row in enumerate(result.per_class.values()):
        if precision[0, 0, number] == -1:
            assert (row.ap, row.ap50, row.ar, row.best_f1) == (None, None, None, None)
            continue
        assert row.ap == pytest.approx(precision[:, :, number].mean(), abs=EXACT)
        assert row.ap50 == pytest.approx(precision[0, :, number].mean(), abs=EXACT)
        assert row.ar == pytest.approx(recall[:, number].mean(), abs=EXACT)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("block", range(6))
def test_lvis_equals_reference(block: int, iou_type: str, load: Any, random_problem: Any, reference: Any) -> None:
    compared = 0
    for seed in range(block * 10, block * 10 + 10):
        dataset, results = random_problem(seed, iou_type=iou_type)
        if not results:
            continue
        compared += 1
        for annotation in dataset["annotations"]:
            annotation["ignore"] = int(annotation["id"] % 9 == 0)
        cap = (300, 4)[seed % 2]
        truth = load(dataset)
        theirs = reference.lvis(dataset, results, iou_type=iou_type, cap=cap)
        ours = lvis(
            DetectionTable.from_coco_results(results, truth),
            truth,
            iou_type=iou_type,
            groups=letters(dataset),
            max_detections=cap,
        )
        assert_equal_metrics(ours.metrics, {name.split("@")[0]: value for name, value in theirs.results.items()})
        assert_equal_classes(ours, theirs.eval["precision"][..., 0], theirs.eval["recall"][..., 0])
    assert compared >= 9


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("block", range(6))
def test_coco_equals_reference(block: int, iou_type: str, load: Any, random_problem: Any, reference: Any) -> None:
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl"]
    compared = 0
    for seed in range(1000 + block * 10, 1010 + block * 10):
        dataset, results = random_problem(seed, iou_type=iou_type, crowds=True)
        if not results:
            continue
        compared += 1
        truth = load(dataset)
        theirs = reference.coco(dataset, results, iou_type=iou_type)
        ours = coco(DetectionTable.from_coco_results(results, truth), truth, iou_type=iou_type)
        assert_equal_metrics(ours.metrics, dict(zip(names, theirs.stats.tolist(), strict=True)))
        assert_equal_classes(ours, theirs.eval["precision"][..., 0, -1], theirs.eval["recall"][..., 0, -1])
    assert compared >= 9


@pytest.mark.parametrize("seed", range(20))
def test_coco_with_other_caps_equals_reference(seed: int, load: Any, random_problem: Any, reference: Any) -> None:
    dataset, results = random_problem(2000 + seed, iou_type="bbox", crowds=True)
    truth = load(dataset)
    cap = (2, 17)[seed % 2]
    theirs = reference.coco(dataset, results, iou_type="bbox", caps=(1, 2) if cap == 2 else (1, 10, 17))
    ours = coco(DetectionTable.from_coco_results(results, truth), truth, max_detections=cap)
    assert_equal_classes(ours, theirs.eval["precision"][..., 0, -1], theirs.eval["recall"][..., 0, -1])
    assert f"AR@{cap}" in ours.metrics
    assert ours.settings["engine_provenance"] == "extension"


def test_settings_of_the_reference_are_recorded_as_such(load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(3, iou_type="bbox")
    truth = load(dataset)
    found = DetectionTable.from_coco_results(results, truth)
    for protocol in (lvis, coco):
        assert protocol(found, truth).settings["engine_provenance"] == "parity_verified"
    wide = lvis(found, truth, max_detections=1000)
    assert wide.settings["engine_provenance"] == "extension"
    assert wide.settings["caps"] == {"per_image": 1000}
    assert {"hotcoco", "numpy", "longtail"} <= wide.settings["versions"].keys()


def test_automatic_choice_needs_both_lists_in_all_images(load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(5, iou_type="bbox")
    truth = load(dataset)
    assert evaluate(DetectionTable.from_coco_results(results, truth), truth).protocol == "lvis"
    del dataset["images"][-1]["not_exhaustive_category_ids"]
    truth = load(dataset)
    found = DetectionTable.from_coco_results(results, truth)
    assert evaluate(found, truth).protocol == "coco"
    with pytest.raises(DataError, match=r"truth\.json.*neg_category_ids.*'coco'"):
        lvis(found, truth)
    with pytest.raises(DataError, match="neg_category_ids"):
        found.federated(truth)
    listed = load(random_problem(5, iou_type="bbox")[0])
    assert evaluate(found, dataclasses.replace(listed, not_exhaustive=None)).protocol == "coco"


def boxes_truth(load: Any, objects: list[tuple[int, int, list[float]]], **lists: Any) -> Any:
    """Two images, three classes; objects as (image id, class id, box)."""
    images = [
        {
            "id": number,
            "file_name": f"{number}.jpg",
            "height": 100,
            "width": 100,
            "neg_category_ids": lists.get("negative", {}).get(number, []),
            "not_exhaustive_category_ids": lists.get("partial", {}).get(number, []),
        }
        for number in (1, 2)
    ]
    annotations = [
        {"id": row, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for row, (image, label, box) in enumerate(objects)  # the first id is 0, which some evaluators take for "none"
    ]
    categories = [{"id": label, "name": name} for label, name in ((1, "cat"), (2, "dog"), (3, "eel"))]
    return load({"images": images, "categories": categories, "annotations": annotations})


def detections(*rows: tuple[int, int, float, list[float]]) -> DetectionTable:
    image, label, score, boxes = zip(*rows, strict=True)
    return DetectionTable(np.array(image), np.array(label), np.array(score), np.array(boxes))


def test_image_cap_comes_before_the_federated_filter(load: Any) -> None:
    """A detection that the filter removes has taken a place under the cap."""
    truth = boxes_truth(load, [(1, 1, [0, 0, 10, 10])])
    found = detections((0, 1, 0.9, [0, 0, 10, 10]), (0, 0, 0.8, [0, 0, 10, 10]))
    assert lvis(found, truth, max_detections=1).metrics["AP"] == 0
    assert lvis(found.federated(truth), truth, max_detections=1).metrics["AP"] == pytest.approx(1)


def test_class_without_objects_is_left_out_and_not_counted_as_zero(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [0, 0, 10, 10])], negative={2: [2]})
    result = lvis(detections((0, 0, 0.8, [0, 0, 10, 10]), (1, 1, 0.9, [5, 5, 20, 20])), truth)
    assert result.metrics["AP"] == pytest.approx(1)
    assert result.metrics["APm"] is None
    assert result.classes_behind["AP"] == {"classes": 3, "with_objects": 1}
    assert result.classes_behind["APm"] == {"classes": 3, "with_objects": 0}
    assert [row.ap for row in result.per_class.values()] == [pytest.approx(1), None, None]


def test_annotation_with_id_zero_can_be_found(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [0, 0, 10, 10])])
    assert lvis(detections((0, 0, 0.8, [0, 0, 10, 10])), truth).metrics["AP"] == pytest.approx(1)


def test_no_detections_give_zero_and_no_objects_give_none(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [0, 0, 10, 10])])
    nothing = boxes_truth(load, [])
    for protocol in ("lvis", "coco", "voc", "fixed", "pool"):
        result = evaluate(DetectionTable.empty(), truth, protocol=protocol)
        assert result.metrics["AP"] == 0
        assert any("no detections" in note for note in result.notes)
        result = evaluate(detections((0, 0, 0.8, [0, 0, 10, 10])), nothing, protocol=protocol)
        assert result.metrics["AP"] is None
        assert any("no objects" in note for note in result.notes)


def statistics_of(names: list[str], images: list[int], instances: list[int]) -> ClassStatistics:
    return ClassStatistics(
        names=names, image_counts=np.array(images), instance_counts=np.array(instances), num_images=9, num_nonempty=9
    )


def test_groups_come_from_training_and_unseen_classes_are_not_rare(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [0, 0, 10, 10]), (1, 2, [20, 20, 10, 10]), (2, 3, [0, 0, 10, 10])])
    found = detections((0, 0, 0.9, [0, 0, 10, 10]), (0, 1, 0.9, [20, 20, 10, 10]))
    # the training file lists its classes in another order
    training = statistics_of(["eel", "cat", "dog"], [0, 3, 200], [0, 7, 900])
    result = lvis(found, truth, training=training)
    assert [row.group for row in result.per_class.values()] == ["r", "f", "-"]
    assert [row.train_images for row in result.per_class.values()] == [3, 200, 0]
    assert [row.train_instances for row in result.per_class.values()] == [7, 900, 0]
    assert result.metrics["APr"] == pytest.approx(1)
    assert result.metrics["APc"] is None
    assert result.metrics["APf"] == pytest.approx(1)
    assert result.metrics["AP-"] == 0
    assert result.metrics["AP"] == pytest.approx(2 / 3)
    assert result.settings["group_sizes"]["-"] == {"classes": 1, "with_objects": 1}
    without = lvis(found, truth)
    assert without.metrics["APr"] is None
    assert any("no training statistics" in note for note in without.notes)


def test_other_training_classes_are_refused(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [0, 0, 10, 10])])
    found = detections((0, 0, 0.9, [0, 0, 10, 10]))
    with pytest.raises(DataError, match="'dog' is not among them"):
        lvis(found, truth, training=statistics_of(["cat", "cow", "eel"], [1, 1, 1], [1, 1, 1]))
    with pytest.raises(UsageError, match="groups must be"):
        lvis(found, truth, groups=["r", "x", "f"])


def test_bins_are_means_of_class_aps(load: Any, random_problem: Any) -> None:
    for seed in range(20):
        dataset, results = random_problem(3000 + seed, iou_type="bbox")
        if seed % 2:
            for image in dataset["images"]:
                del image["neg_category_ids"]
        for number, category in enumerate(dataset["categories"]):
            category["name"] = f"class {number}"
        truth = load(dataset)
        found = DetectionTable.from_coco_results(results, truth)
        rng = np.random.default_rng(seed)
        counts = rng.choice([0, 1, 19, 20, 399, 400, 7999, 8000, 100_000], size=truth.num_classes).tolist()
        training = statistics_of(list(truth.category_names), counts, counts)
        result = bins(found, truth, training=training)
        base = evaluate(found, truth, training=training)
        assert result.metrics["AP"] == base.metrics["AP"]
        for number, (low, high) in enumerate(((1, 20), (20, 400), (400, 8000), (8000, 10**9)), start=1):
            members = [row for row in base.per_class.values() if low <= row.train_instances < high]
            measured = [row.ap for row in members if row.ap is not None]
            expected = pytest.approx(np.mean(measured), abs=EXACT) if measured else None
            assert result.metrics[f"AP{number}"] == expected
            behind = {"classes": len(members), "with_objects": len(measured)}
            assert result.classes_behind[f"AP{number}"] == behind


def test_bins_need_counts_and_ascending_edges(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [0, 0, 10, 10])])
    found = detections((0, 0, 0.9, [0, 0, 10, 10]))
    with pytest.raises(UsageError, match="statistics"):
        bins(found, truth)
    with pytest.raises(UsageError, match="ascending"):
        bins(found, truth, training=statistics_of(["cat", "dog", "eel"], [1] * 3, [1] * 3), edges=(1, 5, 5))


@pytest.mark.parametrize("seed", range(10))
def test_proposals_are_class_agnostic_recall(seed: int, load: Any, random_problem: Any, reference: Any) -> None:
    dataset, results = random_problem(4000 + seed, iou_type="bbox", crowds=True)
    truth = load(dataset)
    result = proposals(DetectionTable.from_coco_results(results, truth), truth, caps=(2, 5, 1000))
    one_class = copy.deepcopy(dataset)
    first = dataset["categories"][0]["id"]
    one_class["categories"] = dataset["categories"][:1]
    for entry in one_class["annotations"]:
        entry["category_id"] = first
    theirs = reference.coco(
        one_class, [{**entry, "category_id": first} for entry in results], iou_type="bbox", caps=(2, 5, 1000)
    )
    for column, cap in enumerate((2, 5, 1000)):
        expected = theirs.eval["recall"][:, 0, 0, column].mean()
        assert result.metrics[f"AR@{cap}"] == (None if expected == -1 else pytest.approx(expected, abs=EXACT))
    assert result.headline == "AR@2"
    assert result.per_class == {}


def test_more_than_300_of_one_class_in_one_image_count_without_a_cap(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [50, 50, 40, 40])])
    rows = [(0, 0, 1 - row / 1000, [0.0, 0.0, 10.0, 10.0]) for row in range(400)]
    found = detections(*rows, (0, 0, 0.01, [50, 50, 40, 40]))
    assert lvis(found, truth).metrics["AR"] == 0
    assert lvis(found, truth, max_detections=1000).metrics["AR"] == pytest.approx(1)
    assert fixed(found, truth).metrics["AR"] == pytest.approx(1)


def test_area_on_the_border_is_small_and_medium(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [0, 0, 32, 32])])
    result = lvis(detections((0, 0, 0.9, [0, 0, 32, 32])), truth)
    assert (result.metrics["APs"], result.metrics["APm"], result.metrics["APl"]) == (
        pytest.approx(1),
        pytest.approx(1),
        None,
    )


def test_best_score_is_where_f1_peaks(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [0, 0, 10, 10]), (2, 1, [0, 0, 10, 10])])
    found = detections(
        (0, 0, 0.9, [0, 0, 10, 10]),
        (1, 0, 0.6, [0, 0, 10, 10]),
        (1, 0, 0.5, [50, 50, 10, 10]),
        (0, 0, 0.4, [70, 0, 9, 9]),
    )
    row = lvis(found, truth).per_class[1]
    assert row.best_f1 == pytest.approx(1)
    assert row.best_score == pytest.approx(0.6)


def test_degenerate_boxes_are_left_out_and_counted(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [0, 0, 10, 10])])
    found = detections((0, 0, 0.9, [0, 0, 0, 10]), (0, 0, 0.8, [0, 0, 10, 10]), (0, 0, 0.8, [3, 3, 5, -1]))
    result = lvis(found, truth)
    assert result.metrics["AP"] == pytest.approx(1)
    assert "left out 2 detections: box without area" in result.notes
    assert result.settings["dropped"] == {"box without area": 2}


def test_detections_of_other_annotations_are_refused(load: Any) -> None:
    truth = boxes_truth(load, [(1, 1, [0, 0, 10, 10])])
    with pytest.raises(DataError, match=r"image index 2, but .* has only 2"):
        coco(detections((2, 0, 0.9, [0, 0, 10, 10])), truth)
    with pytest.raises(DataError, match="class index 3"):
        coco(detections((1, 3, 0.9, [0, 0, 10, 10])), truth)
    for wrong in ({"protocol": "best"}, {"iou_type": "keypoints"}, {"max_detections": 0}):
        with pytest.raises(UsageError):
            evaluate(detections((0, 0, 0.9, [0, 0, 10, 10])), truth, **wrong)
    with pytest.raises(UsageError, match="no masks"):
        coco(detections((0, 0, 0.9, [0, 0, 10, 10])), truth, iou_type="segm")


def test_crowds_and_ignored_objects_follow_the_reference_of_each_protocol(load: Any) -> None:
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 1},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 10], "area": 100, "ignore": 1},
    ]
    image = {"id": 1, "height": 50, "width": 50, "file_name": "a.jpg"}
    lists: dict[str, Any] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    categories = [{"id": 1, "name": "crowd"}, {"id": 2, "name": "ignored"}]
    truth = load({"images": [image | lists], "categories": categories, "annotations": annotations})
    found = detections((0, 0, 0.9, [0, 0, 10, 10]), (0, 1, 0.9, [0, 0, 10, 10]))
    under_lvis = lvis(found, truth)
    assert [row.ap for row in under_lvis.per_class.values()] == [pytest.approx(1), None]
    assert [row.objects for row in under_lvis.per_class.values()] == [1, 0]
    assert "1 crowd objects count as ordinary objects, as in the LVIS reference" in under_lvis.notes
    under_coco = coco(found, truth)
    assert [row.ap for row in under_coco.per_class.values()] == [None, pytest.approx(1)]
    assert [row.objects for row in under_coco.per_class.values()] == [0, 1]
    assert "1 objects with the ignore flag count as ordinary objects, as in the COCO reference" in under_coco.notes


def test_nothing_is_printed(load: Any, random_problem: Any, capfd: pytest.CaptureFixture[str]) -> None:
    dataset, results = random_problem(1, iou_type="bbox")
    truth = load(dataset)
    capfd.readouterr()
    found = DetectionTable.from_coco_results(results, truth)
    for protocol in ("lvis", "coco", "voc", "fixed", "pool"):
        evaluate(found, truth, protocol=protocol, max_detections=77)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_row_order_matters_only_for_equal_scores(load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(8, iou_type="bbox")
    truth = load(dataset)
    found = DetectionTable.from_coco_results(results, truth)
    rng = np.random.default_rng(0)
    distinct = DetectionTable(found.image_index, found.label, rng.permutation(len(found)) / 1000.0, found.boxes)
    shuffled = distinct.select(rng.permutation(len(found)))
    for protocol in ("lvis", "coco", "voc", "fixed", "pool"):
        first, second = (evaluate(rows, truth, protocol=protocol).metrics for rows in (distinct, shuffled))
        assert first == second


def test_duplicate_annotation_ids_are_separate_objects(load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(9, iou_type="bbox")
    truth = load(dataset)
    found = DetectionTable.from_coco_results(results, truth)
    twins = type(truth)(**{**vars(truth), "annotation_ids": np.ones_like(truth.annotation_ids)})
    assert lvis(found, twins).metrics == lvis(found, truth).metrics
