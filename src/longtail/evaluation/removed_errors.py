"""Precision with one kind of error after the other removed (Hoiem et al., ECCV 2012; Libra R-CNN, figure 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.table import AnnotationTable
from longtail.evaluation import engine
from longtail.evaluation.detections import DetectionTable
from longtail.evaluation.problem import Problem, make_problem
from longtail.evaluation.request import make_request

RECALLS = np.linspace(0, 1, 101)
IOU_TOUCH = 0.1
LARGEST = 9e9  # pixels; the range of all sizes ends above
KINDS = ("C75", "C50", "Loc", "Sim", "Oth", "BG", "FN")


@dataclass(frozen=True, eq=False)
class ErrorCurves:
    """Mean precision over the classes with objects.

    Attributes:
        precision: kind -> (101,) precision at recalls 0, 0.01, ... 1. ``C75`` and ``C50`` as they are; ``Loc`` with
            IoU 0.1 instead of 0.5; ``Sim`` and ``Oth`` also without detections that lie, with IoU 0.1 or more, on an
            object of a similar or of any other class; ``BG`` also without all other false positives; ``FN`` is 1.
        classes: how many classes that is.
        grouped: whether similar classes are known (supercategories); otherwise ``Sim`` equals ``Loc``.
    """

    precision: dict[str, NDArray[np.float64]]
    classes: int
    grouped: bool

    def areas(self) -> dict[str, float]:
        """Area under every curve: the mean average precision that is left."""
        return {kind: float(curve.mean()) for kind, curve in self.precision.items()}


def remove_errors(
    detections: DetectionTable, truth: AnnotationTable, *, supercategory: list[str] | None = None
) -> ErrorCurves:
    """Curves of a detector's boxes, under the rules of the data: LVIS with federated lists, otherwise COCO.

    A detection that lies on an object of another class is taken out if it overlaps one by IoU 0.1 or more, however
    many others do so.

    Args:
        detections, truth: as in :func:`longtail.evaluation.lvis`.
        supercategory: of every class; None = unknown.
    """
    federated = truth.federated
    request = make_request("errors", detections, truth, "bbox", None, None, federated=federated)
    cap = 300 if federated else 100
    given = request.detections.cap_per_image(cap) if federated else request.detections
    problem = make_problem(given, truth, iou_type="bbox", federated=federated, letters=[""] * truth.num_classes)
    evaluator = engine.matcher(problem, [cap], "bbox")
    evaluator.params.iou_thrs = [0.1, 0.5, 0.75]
    evaluator.evaluate()
    groups = np.arange(truth.num_classes) if supercategory is None else np.unique(supercategory, return_inverse=True)[1]
    on_similar, on_other = lies_on_others(problem, groups)
    by_class: dict[int, list[dict[str, Any]]] = {}
    for entry in evaluator.eval_imgs:
        if entry is not None and entry["aRng"][0] == 0 and entry["aRng"][1] > LARGEST:
            by_class.setdefault(entry["category_id"], []).append(entry)
    curves = [class_curves(entries, on_similar, on_other) for _, entries in sorted(by_class.items())]
    present = [curve for curve in curves if curve is not None]
    mean = np.mean(present, axis=0) if present else np.zeros((len(KINDS), len(RECALLS)))
    return ErrorCurves(dict(zip(KINDS, mean, strict=True)), classes=len(present), grouped=supercategory is not None)


def lies_on_others(problem: Problem, groups: NDArray[np.intp]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(D,) each: whether a detection overlaps, by IoU 0.1 or more, an object of a similar class other than its own, and
    of any class other than its own."""
    found = problem.detections
    on_similar, on_other = np.zeros(len(found), np.bool_), np.zeros(len(found), np.bool_)
    objects = np.argsort(problem.image, kind="stable")
    detections = np.argsort(found.image_index, kind="stable")
    count = len(problem.sizes)
    own_objects = np.split(objects, np.searchsorted(problem.image[objects], np.arange(1, count)))
    own_detections = np.split(detections, np.searchsorted(found.image_index[detections], np.arange(1, count)))
    for there, here in zip(own_objects, own_detections, strict=True):
        if not len(there) or not len(here):
            continue
        near = box_iou(found.boxes[here], problem.boxes[there]) >= IOU_TOUCH
        mine, theirs = found.label[here][:, None], problem.label[there][None, :]
        others = near & (mine != theirs)
        on_other[here] = others.any(axis=1)
        on_similar[here] = (others & (groups[mine] == groups[theirs])).any(axis=1)
    return on_similar, on_other


def box_iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU (A, B) of boxes x, y, width, height."""
    start = np.maximum(one[:, None, :2], other[None, :, :2])
    end = np.minimum((one[:, :2] + one[:, 2:])[:, None], (other[:, :2] + other[:, 2:])[None])
    common = (end - start).clip(min=0).prod(axis=2)
    union = one[:, 2:].prod(axis=1)[:, None] + other[:, 2:].prod(axis=1)[None] - common
    return np.asarray(common / np.maximum(union, 1e-12), dtype=np.float64)


def class_curves(
    entries: list[dict[str, Any]], on_similar: NDArray[np.bool_], on_other: NDArray[np.bool_]
) -> NDArray[np.float64] | None:
    """(7, 101) precision of one class for every kind; None for a class without objects."""
    objects = sum(sum(entry["gtInDenominator"]) for entry in entries)
    if objects == 0:
        return None
    score = np.concatenate([np.asarray(entry["dtScores"], dtype=np.float64) for entry in entries])
    rows = np.concatenate([np.asarray(entry["dtIds"], dtype=np.int64) for entry in entries]) - 1
    matched = np.concatenate([np.asarray(e["dtMatched"], dtype=np.bool_).reshape(3, -1) for e in entries], axis=1)
    left_out = np.concatenate([np.asarray(e["dtIgnore"], dtype=np.bool_).reshape(3, -1) for e in entries], axis=1)
    order = np.argsort(-score, kind="stable")
    rows, matched, left_out = rows[order], matched[:, order], left_out[:, order]
    loose, loose_out = matched[0], left_out[0]
    wrong = ~loose & ~loose_out
    return np.stack(
        [
            precision_at_recalls(matched[2], left_out[2], objects),
            precision_at_recalls(matched[1], left_out[1], objects),
            precision_at_recalls(loose, loose_out, objects),
            precision_at_recalls(loose, loose_out | (wrong & on_similar[rows]), objects),
            precision_at_recalls(loose, loose_out | (wrong & on_other[rows]), objects),
            precision_at_recalls(loose, loose_out | wrong, objects),
            np.ones(len(RECALLS)),
        ]
    )


def precision_at_recalls(matched: NDArray[np.bool_], left_out: NDArray[np.bool_], objects: int) -> NDArray[np.float64]:
    """(101,) best precision at every recall or a higher one, 0 where it is not reached; detections best first."""
    hits = matched[~left_out]
    true = np.cumsum(hits)
    precision = true / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(true / objects, RECALLS, side="left")
    return np.append(best, 0.0)[np.minimum(place, len(best))]
