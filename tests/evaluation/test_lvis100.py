"""The hundred LVIS images against the reference packages, with generated detections."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_codec

from longtail.data.table import AnnotationTable
from longtail.evaluation import DetectionTable, coco, fixed, lvis

FILE = Path(__file__).parents[2].parent / "shared" / "data" / "lvis100" / "lvis_val_100.json.gz"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not FILE.exists(), reason="the LVIS example is not beside the checkout"),
]


@pytest.fixture(scope="module")
def dataset() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(gzip.decompress(FILE.read_bytes()))
    return content


@pytest.fixture(scope="module")
def truth() -> AnnotationTable:
    return AnnotationTable.from_coco(FILE)


def generated(dataset: dict[str, Any], truth: AnnotationTable, iou_type: str) -> list[dict[str, Any]]:
    """Jittered objects, wrong classes, random boxes and rounded scores; every ninth image has over 300 detections."""
    rng = np.random.default_rng(100)
    class_ids = [category["id"] for category in dataset["categories"]]
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in dataset["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    results = []
    for number, image in enumerate(dataset["images"]):
        objects = by_image.get(image["id"], [])
        likely = [entry["category_id"] for entry in objects] + image["neg_category_ids"] or class_ids
        guesses = [(entry["bbox"], entry["category_id"]) for entry in objects for _ in range(2)]
        size = np.array([image["width"], image["height"]])
        for _ in range(350 if number % 9 == 0 else 40):
            corner = rng.uniform(0, 0.8, 2) * size
            box = [*corner, *(rng.uniform(0.03, 0.2, 2) * size)]
            guesses.append((box, int(rng.choice(likely if rng.random() < 0.7 else class_ids))))
        for box, label in guesses:
            moved = np.array(box) + rng.normal(scale=0.06, size=4) * np.tile(np.maximum(box[2:], 1), 2)
            x, y = np.clip(moved[:2], 0, size - 2)
            width, height = np.clip(moved[2:], 1, size - (x, y))
            score = float(np.float16(rng.beta(2, 2) if rng.random() < 0.7 else 0.5))
            entry = {"image_id": image["id"], "category_id": label, "score": score}
            if iou_type == "bbox":
                results.append(entry | {"bbox": [float(x), float(y), float(width), float(height)]})
                continue
            outline = [x, y, x + width, y, x + width, y + height * 0.9, x, y + height]
            rle = mask_codec.merge(mask_codec.frPyObjects([outline], image["height"], image["width"]))
            results.append(entry | {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}})
    return results


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_lvis_equals_reference(iou_type: str, dataset: dict[str, Any], truth: AnnotationTable, reference: Any) -> None:
    results = generated(dataset, truth, iou_type)
    counts = np.unique([entry["image_id"] for entry in results], return_counts=True)[1]
    assert (counts > 300).sum() >= 10
    theirs = reference.lvis(dataset, results, iou_type=iou_type)
    letters = [category["frequency"] for category in sorted(dataset["categories"], key=lambda entry: entry["id"])]
    found = DetectionTable.from_coco_results(results, truth)
    ours = lvis(found, truth, iou_type=iou_type, groups=letters)
    assert ours.settings["engine_provenance"] == "parity_verified"
    for name, value in theirs.results.items():
        assert ours.metrics[name.split("@")[0]] == pytest.approx(value, abs=1e-9), name
    assert 0.05 < theirs.results["AP"] < 0.95
    precision = theirs.eval["precision"][..., 0].mean(axis=(0, 1))
    own = np.array([-1.0 if row.ap is None else row.ap for row in ours.per_class.values()])
    assert np.abs(own - precision).max() < 1e-9
    assert ours.classes_behind["AP"] == {"classes": 1230, "with_objects": 190}
    assert ours.classes_behind["APr"]["with_objects"] == 1

    uncapped = fixed(found, truth, iou_type=iou_type, groups=letters).metrics
    assert uncapped["AP"] != ours.metrics["AP"]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_coco_equals_reference(iou_type: str, dataset: dict[str, Any], truth: AnnotationTable, reference: Any) -> None:
    results = generated(dataset, truth, iou_type)
    complete = dict(dataset)
    complete["annotations"] = [entry | {"iscrowd": 0} for entry in dataset["annotations"]]
    theirs = reference.coco(complete, results, iou_type=iou_type)
    ours = coco(DetectionTable.from_coco_results(results, truth), truth, iou_type=iou_type)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl"]
    for name, value in zip(names, theirs.stats.tolist(), strict=True):
        assert ours.metrics[name] == pytest.approx(value, abs=1e-9), name
