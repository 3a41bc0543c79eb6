"""The matching and counting of COCO and LVIS average precision, done by hotcoco."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from longtail.evaluation.problem import Pairs, Problem

NO_LIMIT = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Curves:
    """What the engine counted; -1 stands where a class has no object of that size.

    Attributes:
        precision: (T, R, C, A, M) for 10 IoU thresholds, 101 recalls, C classes, 4 size ranges (all, small, medium,
            large) and M caps on detections; at each recall the best precision at this recall or a higher one.
        recall: (T, C, A, M) reached in the end.
        scores: (T, R, C, A, M) score at which each recall is reached.
        provenance: ``parity_verified`` when the settings are the reference's own, else ``extension``.
        deviations: how the settings differ from the reference.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]
    provenance: str
    deviations: list[str]

    IOU_50 = 0
    IOU_75 = 5


def engine_version() -> str:
    """Name and version of the engine, for provenance."""
    return f"hotcoco {importlib.metadata.version('hotcoco')}"


def run(problem: Problem, caps: list[int], iou_type: str) -> Curves:
    """Match detections to objects and count.

    Args:
        problem: in arrays; the federated rules hold if it has ``negatives``.
        caps: ascending; under COCO rules the best so many of every class and image, one M for each. Under LVIS rules
            one number, by which the detections have been cut before.
        iou_type: ``"bbox"`` or ``"segm"``.
    """
    evaluator = matcher(problem, caps, iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    counted = evaluator.eval
    assert counted is not None
    return Curves(
        precision=np.asarray(counted["precision"]),
        recall=np.asarray(counted["recall"]),
        scores=np.asarray(counted["scores"]),
        provenance=evaluator.provenance(),
        deviations=list(evaluator.reference_deviations()),
    )


def matcher(problem: Problem, caps: list[int], iou_type: str) -> hotcoco.COCOeval:
    """The engine with everything loaded and nothing matched yet; arguments as in :func:`run`."""
    images = _images(problem)
    categories = [_category(number, letter) for number, letter in enumerate(problem.letters, start=1)]
    truth = hotcoco.COCO.from_arrays(
        images,
        categories,
        problem.image + 1,
        problem.label + 1,
        problem.boxes,
        ids=np.arange(1, len(problem.image) + 1),
        area=problem.area,
        iscrowd=problem.crowd,
        segmentation=None if problem.masks is None else list(problem.masks),
    )
    federated = problem.negatives is not None
    results = _results(problem)
    loaded = hotcoco.LVISResults(truth, results, -1) if federated else truth.load_res(results)
    evaluator = hotcoco.COCOeval(truth, loaded, iou_type, lvis_style=federated)
    # Without this an uncapped LVIS run would still use only the 300 best of each class and image.
    evaluator.params.max_dets = list(caps)
    return evaluator


def _images(problem: Problem) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = [
        {"id": number, "height": height, "width": width}
        for number, (height, width) in enumerate(problem.sizes.tolist(), start=1)
    ]
    _attach(images, "neg_category_ids", problem.negatives)
    _attach(images, "not_exhaustive_category_ids", problem.not_exhaustive)
    return images


def _attach(images: list[dict[str, Any]], key: str, pairs: Pairs | None) -> None:
    if pairs is None:
        return
    for image in images:
        image[key] = []
    for row, label in zip(pairs[0].tolist(), pairs[1].tolist(), strict=True):
        images[row][key].append(label + 1)


def _category(number: int, letter: str) -> dict[str, Any]:
    # Names can repeat in a file, so classes go by number here.
    category: dict[str, Any] = {"id": number, "name": str(number)}
    if letter in ("r", "c", "f"):
        category["frequency"] = letter
    return category


def _results(problem: Problem) -> Any:
    detections = problem.detections
    if problem.masks is None:
        return np.column_stack(
            [detections.image_index + 1, detections.boxes, detections.score, detections.label + 1]
        ).reshape(-1, 7)
    # Masks come without boxes: sizes of detections would otherwise be those of the boxes.
    columns = (detections.image_index.tolist(), detections.label.tolist(), detections.score.tolist())
    return [
        {"image_id": image + 1, "category_id": label + 1, "score": score, "segmentation": rle}
        for image, label, score, rle in zip(*columns, detections.rles or [], strict=True)
    ]
