"""Pascal VOC average precision at IoU 0.5 (Everingham et al., 2010; the development kit's rules)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longtail.data.statistics import ClassStatistics
from longtail.data.table import AnnotationTable
from longtail.evaluation.detections import DetectionTable
from longtail.evaluation.federation import id_ranks
from longtail.evaluation.request import make_request
from longtail.evaluation.result import EvaluationResult
from longtail.evaluation.summary import Means, add_groups, optional
from longtail.schema.errors import UsageError

IOU_THRESHOLD = 0.5
HIT, MISS, NEITHER = 1, 0, -1


def voc(
    detections: DetectionTable,
    truth: AnnotationTable,
    *,
    iou_type: str = "bbox",
    training: ClassStatistics | None = None,
    groups: Sequence[str] | None = None,
    max_detections: int | None = None,
) -> EvaluationResult:
    """VOC: each detection looks at its best-overlapping object alone and hits it if the overlap exceeds 0.5.

    A second hit of the same object is a false positive; a hit of a difficult object (``ignore`` flag, or a crowd)
    counts neither way. Overlaps count pixels inclusively. ``AP`` and ``AP50`` are the area under the curve's envelope
    (VOC 2010 and later), ``AP50_11point`` is the mean over 11 recalls (VOC 2007). Scores and boxes are not rounded,
    unlike in some toolboxes, whose numbers differ slightly for it.

    Args:
        detections: rows with equal scores rank by image id and then in row order.
        truth: boxes ``x, y, width, height`` that cover ``width`` by ``height`` pixels, i.e. from VOC's corners
            ``xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1``.
        iou_type: ``"bbox"`` only.
        training, groups: as in :func:`longtail.evaluation.lvis`.
        max_detections: per image; None = all.

    Raises:
        UsageError: ``iou_type`` other than ``"bbox"``.
    """
    if iou_type != "bbox":
        raise UsageError("the VOC protocol is defined for boxes alone (iou_type='bbox')")
    request = make_request("voc", detections, truth, iou_type, training, groups, federated=False)
    given = request.detections if max_detections is None else request.detections.cap_per_image(max_detections)
    rank = id_ranks(truth.image_ids)
    given = given.select(np.lexsort((rank[given.image_index], -given.score)))
    difficult = truth.ignore | truth.iscrowd
    outcome = outcomes(given, truth, difficult)
    num_objects = np.bincount(truth.label[~difficult], minlength=truth.num_classes)

    area, eleven, recall = (np.full(truth.num_classes, -1.0) for _ in range(3))
    by_class = np.argsort(given.label, kind="stable")
    ends = np.searchsorted(given.label[by_class], np.arange(truth.num_classes + 1))
    for label in np.flatnonzero(num_objects).tolist():
        hits = outcome[by_class[ends[label] : ends[label + 1]]]
        reached, precision = curve(hits, int(num_objects[label]))
        area[label] = area_under(reached, precision)
        eleven[label] = eleven_points(reached, precision)
        recall[label] = reached[-1] if len(reached) else 0.0

    means = Means()
    for name, values in (("AP", area), ("AP50", area), ("AP50_11point", eleven), ("AR", recall)):
        means.add(name, values)
    add_groups(means, "AP", area, request.classes.letters)
    columns = zip(optional(area), optional(area), optional(recall), strict=True)
    rows = [row.measured(*values) for row, values in zip(request.rows, columns, strict=True)]
    settings = {"caps": {"per_image": max_detections}, "engine": "longtail", "iou_threshold": IOU_THRESHOLD}
    return request.result(means, rows, settings)


def outcomes(detections: DetectionTable, truth: AnnotationTable, difficult: NDArray[np.bool_]) -> NDArray[np.int8]:
    """What became of every detection: 1 hit, 0 false positive, -1 neither.

    Args:
        detections: in descending order of score.
        truth: objects.
        difficult: (A,) objects that count neither way.
    """
    classes = truth.num_classes
    object_key = truth.image_index.astype(np.int64) * classes + truth.label
    object_order = np.argsort(object_key, kind="stable")
    ordered_key = object_key[object_order]
    key = detections.image_index * classes + detections.label
    first = np.searchsorted(ordered_key, key, side="left")
    candidates = np.searchsorted(ordered_key, key, side="right") - first

    # One row for every pair of a detection and an object of its class in its image, ordered by detection.
    detection = np.repeat(np.arange(len(key)), candidates)
    start = np.cumsum(candidates) - candidates
    nth = np.arange(len(detection)) - np.repeat(start, candidates)
    objects = object_order[np.repeat(first, candidates) + nth]
    overlap = pixel_overlap(detections.boxes[detection], truth.boxes_xywh[objects])

    # The first of the largest overlaps of every detection.
    order = np.lexsort((nth, -overlap, detection))
    best = order[start[candidates > 0]]
    chosen = best[overlap[best] > IOU_THRESHOLD]

    outcome = np.full(len(key), MISS, dtype=np.int8)
    hit_object, hitter = objects[chosen], detection[chosen]
    outcome[hitter[difficult[hit_object]]] = NEITHER
    countable = ~difficult[hit_object]
    # Pairs are in descending order of score, so that the first detection of each object is the one that counts.
    _, first_hit = np.unique(hit_object[countable], return_index=True)
    outcome[hitter[countable][first_hit]] = HIT
    return outcome


def pixel_overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union, (N,), of boxes (N, 4) x, y, width, height, in inclusive pixels.

    The last pixel of a box is at ``x + width - 1``, so that inclusive counting gives its ``width`` back.
    """
    low = np.maximum(first[:, :2], second[:, :2])
    last = np.minimum(first[:, :2] + first[:, 2:] - 1, second[:, :2] + second[:, 2:] - 1)
    shared = np.clip(last - low + 1, 0, None).prod(axis=1)
    union = first[:, 2:].prod(axis=1) + second[:, 2:].prod(axis=1) - shared
    overlap: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap


def curve(outcome: NDArray[np.int8], num_objects: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and precision after every detection, in descending order of score."""
    true = np.cumsum(outcome == HIT).astype(np.float64)
    false = np.cumsum(outcome == MISS).astype(np.float64)
    return true / num_objects, true / np.maximum(true + false, np.finfo(np.float64).eps)


def area_under(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Area under the smallest falling curve above precision over recall."""
    reached = np.concatenate([[0.0], recall])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(reached) * envelope))


def eleven_points(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Mean, over the recalls 0, 0.1, ..., 1, of the best precision at that recall or a higher one."""
    levels = np.arange(0.0, 1.1, 0.1)
    return float(sum(precision[recall >= level].max(initial=0.0) for level in levels) / len(levels))
