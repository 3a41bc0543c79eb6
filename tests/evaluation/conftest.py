"""Random evaluation problems, and the reference evaluators they are compared with."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_codec

from longtail.data.table import AnnotationTable

Dataset = dict[str, Any]
Results = list[dict[str, Any]]


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Dataset], AnnotationTable]:
    """Annotations as a table, through a file as users have it."""

    def from_dict(dataset: Dataset) -> AnnotationTable:
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(dataset))
        return AnnotationTable.from_coco(path)

    return from_dict


@pytest.fixture(scope="session")
def random_problem() -> Callable[..., tuple[Dataset, Results]]:
    """A function: seed, iou_type, crowds -> annotations and results in file format."""
    return make_random_problem


@pytest.fixture(scope="session")
def reference() -> types.SimpleNamespace:
    """``lvis(...)`` and ``coco(...)``: evaluators of the reference packages after ``run``."""
    return types.SimpleNamespace(lvis=run_lvis, coco=run_coco)


def make_random_problem(seed: int, *, iou_type: str, crowds: bool = False) -> tuple[Dataset, Results]:
    """A few images with odd ids, objects of all sizes, missed ones, false positives and tied scores."""
    rng = np.random.default_rng(seed)
    side = 160
    image_ids = rng.choice(10_000, size=rng.integers(2, 9), replace=False).tolist()
    class_ids = np.sort(rng.choice(900, size=rng.integers(3, 12), replace=False) + 1).tolist()
    images = [
        {
            "id": image_id,
            "file_name": f"{image_id}.jpg",
            "height": side,
            "width": side + 7,
            "neg_category_ids": rng.choice(class_ids, size=rng.integers(0, 3), replace=False).tolist(),
            "not_exhaustive_category_ids": rng.choice(class_ids, size=rng.integers(0, 2), replace=False).tolist(),
        }
        for image_id in image_ids
    ]
    populated = rng.choice(class_ids, size=max(2, len(class_ids) - 2), replace=False)
    annotations: list[dict[str, Any]] = []
    results: Results = []
    for image_id in image_ids:
        boxes = [_box(rng, side) for _ in range(rng.integers(0, 8))]
        for box in boxes:
            label = int(rng.choice(populated))
            crowd = int(crowds and rng.random() < 0.15)
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "bbox": box}
            annotation |= {
                "iscrowd": crowd,
                **_object_mask(rng, box, side, crowd=bool(crowd), masks=iou_type == "segm"),
            }
            annotations.append(annotation)
            for _ in range(rng.integers(0, 3)):
                guess = label if rng.random() < 0.8 else int(rng.choice(class_ids))
                jitter = rng.normal(scale=3, size=4) * rng.integers(0, 2)
                moved = [*np.array(box[:2]) + jitter[:2], *np.maximum(np.array(box[2:]) + jitter[2:], 1)]
                results.append(_result(rng, image_id, guess, [float(v) for v in moved], side, iou_type))
        for _ in range(rng.integers(0, 6)):
            results.append(_result(rng, image_id, int(rng.choice(class_ids)), _box(rng, side), side, iou_type))
    order = rng.permutation(len(results))
    categories = [
        {"id": class_id, "name": f"class {number % 4}" if seed % 5 == 0 else f"class {number}", "frequency": letter}
        for number, (class_id, letter) in enumerate(
            zip(class_ids, rng.choice(list("rcf"), len(class_ids)), strict=True)
        )
    ]
    dataset = {"images": images, "categories": categories, "annotations": annotations}
    return json.loads(json.dumps(dataset)), [results[row] for row in order]


def _box(rng: np.random.Generator, side: int) -> list[float]:
    if rng.random() < 0.2:  # an area on the border of small and medium
        return [float(rng.integers(0, side - 40)), float(rng.integers(0, side - 40)), 32.0, 32.0]
    width, height = rng.uniform(4, side * 0.8, size=2)
    return [float(rng.uniform(0, side - width)), float(rng.uniform(0, side - height)), float(width), float(height)]


def _object_mask(rng: np.random.Generator, box: list[float], side: int, *, crowd: bool, masks: bool) -> dict[str, Any]:
    x, y, width, height = box
    if not masks:
        return {"area": width * height}
    cut = float(rng.uniform(0.2, 1))
    outline = [x, y, x + width, y, x + width, y + height * cut, x + width * cut, y + height, x, y + height]
    rle = mask_codec.merge(mask_codec.frPyObjects([outline], side, side + 7))
    text = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {"area": float(mask_codec.area(rle)), "segmentation": text if crowd else [outline]}


def _result(
    rng: np.random.Generator, image_id: int, label: int, box: list[float], side: int, iou_type: str
) -> dict[str, Any]:
    entry: dict[str, Any] = {"image_id": image_id, "category_id": label, "score": float(rng.integers(1, 10)) / 10}
    if iou_type == "bbox":
        return entry | {"bbox": box}
    x, y, width, height = box
    rle = mask_codec.merge(
        mask_codec.frPyObjects([[x, y, x + width, y, x + width, y + height, x, y + height]], side, side + 7)
    )
    return entry | {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}


@contextlib.contextmanager
def _old_numpy() -> Iterator[None]:
    """The released lvis uses an alias that numpy has removed."""
    np.float = float  # noqa: NPY001
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        del np.float  # noqa: NPY001


def run_lvis(dataset: Dataset, results: Results, *, iou_type: str, cap: int = 300) -> Any:
    """lvis 0.5.3 on dicts, which it changes: it gets copies."""
    import logging

    lvis = pytest.importorskip("lvis")
    logging.getLogger("lvis").setLevel(logging.ERROR)
    truth = lvis.LVIS.__new__(lvis.LVIS)
    truth.logger = logging.getLogger("lvis.lvis")
    truth.dataset = copy.deepcopy(dataset)
    with _old_numpy():
        truth._create_index()
        found = lvis.LVISResults(truth, copy.deepcopy(results), max_dets=cap)
        evaluator = lvis.LVISEval(truth, found, iou_type)
        evaluator.params.max_dets = cap
        evaluator.run()
    return evaluator


def run_coco(dataset: Dataset, results: Results, *, iou_type: str, caps: tuple[int, ...] = (1, 10, 100)) -> Any:
    """pycocotools on copies."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iou_type)
        evaluator.params.maxDets = list(caps)
        evaluator.evaluate()
        evaluator.accumulate()
        if caps == (1, 10, 100):
            evaluator.summarize()
    return evaluator
