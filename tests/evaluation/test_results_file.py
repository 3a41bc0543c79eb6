"""The results format: original ids there and back, every form of mask, and errors that say what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_codec

from longtail.data import AnnotationTable
from longtail.evaluation import DetectionTable, lvis
from longtail.schema.errors import DataError, UsageError


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_round_trip_through_a_file(iou_type: str, suffix: str, tmp_path: Path, load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(11, iou_type=iou_type)
    truth = load(dataset)
    found = DetectionTable.from_coco_results(results, truth)
    assert found.to_coco_results(truth, iou_type) == results
    path = tmp_path / "new folder" / "results.json"
    found.write_json(path, truth, iou_type)
    assert json.loads(path.read_text()) == results
    if suffix == ".json.gz":
        path = tmp_path / "results.json.gz"
        path.write_bytes(gzip.compress(json.dumps(results).encode()))
    again = DetectionTable.from_coco_results(path, truth)
    assert again.to_coco_results(truth, iou_type) == results
    assert not list(tmp_path.rglob(".results*"))


def test_mask_results_carry_no_box(load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(12, iou_type="segm")
    truth = load(dataset)
    found = DetectionTable.from_coco_results(results, truth)
    assert all("bbox" not in entry for entry in found.to_coco_results(truth, "segm"))
    assert all("segmentation" not in entry for entry in found.to_coco_results(truth, "bbox"))
    assert found.boxes[0].tolist() == mask_codec.toBbox(found.rles[0]).tolist()


def test_boxes_beside_masks_change_nothing(load: Any, random_problem: Any) -> None:
    """A box far larger than its mask must not decide the size range."""
    dataset, results = random_problem(13, iou_type="segm")
    truth = load(dataset)
    alone = lvis(DetectionTable.from_coco_results(results, truth), truth, iou_type="segm")
    with_boxes = [entry | {"bbox": [0, 0, 160, 160]} for entry in results]
    beside = lvis(DetectionTable.from_coco_results(with_boxes, truth), truth, iou_type="segm")
    assert alone.metrics == beside.metrics


def words_truth(load: Any) -> Any:
    image = {"id": "left/one", "height": 20, "width": 30, "file_name": "a.jpg"}
    categories = [{"id": 7, "name": "a"}, {"id": 90, "name": "b"}]
    return load({"images": [image, image | {"id": "two"}], "categories": categories, "annotations": []})


def test_ids_are_opaque(load: Any) -> None:
    entry = {"image_id": "two", "category_id": 90, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.25}
    truth = words_truth(load)
    found = DetectionTable.from_coco_results([entry], truth)
    assert (found.image_index.tolist(), found.label.tolist()) == ([1], [1])
    assert found.to_coco_results(truth, "bbox") == [entry]


def test_every_form_of_mask_is_read(load: Any) -> None:
    truth = words_truth(load)
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[3:9, 4:12] = 1
    rle = mask_codec.encode(mask)
    runs = [4 * 20 + 3, *[6, 14] * 7, 6, 20 * 30 - (11 * 20 + 9)]
    forms = [
        rle,
        {"size": [20, 30], "counts": rle["counts"].decode()},
        {"size": [20, 30], "counts": runs},
        [[4, 3, 12, 3, 12, 9, 4, 9]],
    ]
    entries = [{"image_id": "two", "category_id": 7, "score": 0.5, "segmentation": form} for form in forms]
    found = DetectionTable.from_coco_results(entries, truth)
    for own in found.rles or []:
        assert (mask_codec.decode(own) == mask).all()
    assert found.boxes.tolist() == [[4, 3, 8, 6]] * 4


def test_unknown_ids_are_refused_or_dropped_and_counted(load: Any) -> None:
    truth = words_truth(load)
    good = {"image_id": "two", "category_id": 90, "bbox": [1, 2, 3, 4], "score": 0.25}
    entries = [good, good | {"category_id": 8}, good | {"image_id": "three"}, good | {"image_id": "four"}]
    with pytest.raises(DataError, match=r"2 detections are of images .*truth\.json does not have.*image_id 'three'"):
        DetectionTable.from_coco_results(entries, truth)
    with pytest.raises(DataError, match=r"1 detections are of classes .*category_id 8.*LVIS v0\.5 and v1"):
        DetectionTable.from_coco_results(entries[:2], truth)
    found = DetectionTable.from_coco_results(entries, truth, unknown="drop")
    assert len(found) == 1
    assert found.dropped == {"image not in the annotations": 2, "class not in the annotations": 1}
    with pytest.raises(UsageError, match="'drop'"):
        DetectionTable.from_coco_results(entries, truth, unknown="ignore")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "NaN"),
        ({"score": "high"}, "entry 1 needs .* 'score'"),
        ({"score": float("nan")}, "NaN"),
        ({"bbox": [1, 2, 3]}, "four numbers"),
        ({"bbox": None}, "entry 1 has neither"),
        ({"segmentation": {"size": [20, 30], "counts": "0"}}, "1 of 2 entries have a mask, entry 0 has none"),
    ],
)
def test_bad_entries_are_refused(change: dict[str, Any], message: str, load: Any) -> None:
    good = {"image_id": "two", "category_id": 90, "bbox": [1, 2, 3, 4], "score": 0.25}
    with pytest.raises(DataError, match=message):
        DetectionTable.from_coco_results([good, good | change], words_truth(load))
    with pytest.raises(DataError, match="entry 1 needs"):
        DetectionTable.from_coco_results([good, {"bbox": [1, 2, 3, 4]}], words_truth(load))


def test_masks_of_another_size_or_no_masks_are_refused(load: Any) -> None:
    truth = words_truth(load)
    entry = {"image_id": "two", "category_id": 90, "score": 0.25}
    turned = mask_codec.encode(np.ones((30, 20), np.uint8, order="F"))
    with pytest.raises(DataError, match=r"\(30, 20\) high and wide, but image 'two' is \(20, 30\)"):
        DetectionTable.from_coco_results([entry | {"segmentation": turned}], truth)
    with pytest.raises(DataError, match="mask of entry 0 cannot be read"):
        DetectionTable.from_coco_results([entry | {"segmentation": {"size": [20, 30]}}], truth)
    found = DetectionTable.from_coco_results([entry | {"bbox": [0, 0, 1, 1]}], truth)
    with pytest.raises(UsageError, match="no masks"):
        found.to_coco_results(truth, "segm")
    with pytest.raises(UsageError, match="'bbox' or 'segm'"):
        found.to_coco_results(truth, "keypoints")
    assert DetectionTable.empty().to_coco_results(truth, "segm") == []


def test_files_that_are_no_results_are_refused(load: Any, tmp_path: Path) -> None:
    truth = words_truth(load)
    with pytest.raises(DataError, match="no such results file"):
        DetectionTable.from_coco_results(tmp_path / "none.json", truth)
    path = tmp_path / "results.json"
    path.write_text('[{"image_id": 1,')
    with pytest.raises(DataError, match="is the file complete"):
        DetectionTable.from_coco_results(path, truth)
    path.write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match="a file of annotations"):
        DetectionTable.from_coco_results(path, truth)
    path.write_text("[]")
    assert len(DetectionTable.from_coco_results(path, truth)) == 0


def test_predictions_are_matched_by_file_name(tmp_path: Path) -> None:
    truth = AnnotationTable.from_image_list(["b.png", "sub/a.png"], categories=(["cat"], [7]))
    content = {
        "images": [{"id": 1, "file_name": "sub/a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5},
            {"image_id": 2, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.25},
        ],
    }
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(content))
    found = DetectionTable.from_coco_results(path, truth)
    assert (found.image_index.tolist(), found.score.tolist()) == ([1, 0], [0.5, 0.25])
    content["images"][0]["file_name"] = "elsewhere.png"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="1 detections are of images that"):
        DetectionTable.from_coco_results(path, truth)
    del content["annotations"][0]["score"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="file of annotations"):
        DetectionTable.from_coco_results(path, truth)
