"""One evaluation in plain arrays, before it meets the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.table import AnnotationTable
from longtail.evaluation.detections import DetectionTable
from longtail.evaluation.federation import id_ranks, list_pairs
from longtail.schema.errors import DataError, UsageError

Rle = dict[str, Any]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]

BEYOND_EVERY_SIZE = 1e12
"""An area in square pixels outside all size ranges: the engine then counts the object neither way."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Objects and detections of images 0..I-1 and classes 0..C-1.

    Images are numbered in ascending order of their original ids, which is the order in which reference code ranks
    detections with equal scores.

    Attributes:
        sizes: (I, 2) height and width in pixels.
        num_classes: C.
        image, label, boxes, area, crowd: columns of the objects; boxes are x, y, width, height in pixels.
        masks: run lengths of the objects, or None for boxes.
        detections: their ``image_index`` uses the numbers of this problem.
        negatives, not_exhaustive: (images, labels) of the pairs in the federated lists, or None under COCO rules.
        letters: (C,) frequency group of every class: r, c, f or anything else for none.
    """

    sizes: NDArray[np.int64]
    num_classes: int
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    masks: list[Rle] | None
    detections: DetectionTable
    negatives: Pairs | None
    not_exhaustive: Pairs | None
    letters: list[str]


def make_problem(
    detections: DetectionTable, truth: AnnotationTable, *, iou_type: str, federated: bool, letters: list[str]
) -> Problem:
    """Collect the columns of one evaluation.

    Under LVIS rules an object with the ``ignore`` flag is neither found nor missed and crowds are ordinary objects;
    under COCO rules it is the other way round. Both are what the reference code does.

    Args:
        detections: in the numbering of ``truth``.
        truth: objects.
        iou_type: ``"bbox"`` or ``"segm"``.
        federated: whether the LVIS lists are obeyed.
        letters: frequency group of every class.

    Raises:
        UsageError: masks are asked for and the detections have none.
        DataError: masks are asked for and the annotations have none that fit, or the lists are missing.
    """
    rank = id_ranks(truth.image_ids)
    order = np.argsort(rank)
    area = truth.area.astype(np.float64)
    if federated:
        area = np.where(truth.ignore, BEYOND_EVERY_SIZE, area)
    if iou_type == "segm" and detections.rles is None and len(detections):
        raise UsageError("these detections have no masks; evaluate them with iou_type='bbox'")
    moved = replace(
        detections,
        image_index=rank[detections.image_index],
        rles=(detections.rles or []) if iou_type == "segm" else None,
    )
    negatives, not_exhaustive = None, None
    if federated:
        negatives, not_exhaustive = (
            (rank[image], label)
            for image, label in (list_pairs(truth, "negatives"), list_pairs(truth, "not_exhaustive"))
        )
    return Problem(
        sizes=np.stack([truth.heights, truth.widths], axis=1).astype(np.int64)[order],
        num_classes=truth.num_classes,
        image=rank[truth.image_index],
        label=truth.label.astype(np.int64),
        boxes=truth.boxes_xywh.astype(np.float64),
        area=area,
        crowd=np.zeros(len(area), dtype=bool) if federated else truth.iscrowd.astype(bool),
        masks=object_masks(truth) if iou_type == "segm" else None,
        detections=moved,
        negatives=negatives,
        not_exhaustive=not_exhaustive,
        letters=letters,
    )


def object_masks(truth: AnnotationTable) -> list[Rle]:
    """Run lengths of every object; an object without a mask has an empty one, which nothing can find.

    Raises:
        DataError: there are no masks at all, or one is for a picture of another size.
    """
    if len(truth.label) and truth.masks is None:
        raise DataError(f"{truth.source} has no masks; evaluate boxes (iou_type='bbox')")
    heights, widths = truth.heights.tolist(), truth.widths.tolist()
    found: list[Rle] = []
    for row, image in enumerate(truth.image_index.tolist()):
        assert truth.masks is not None
        try:
            found.append(truth.masks.rle(row, heights[image], widths[image]))
        except ValueError as error:
            raise DataError(
                f"{truth.source}: annotation {truth.annotation_ids[row]}: {error}; repair it, or evaluate boxes "
                "(iou_type='bbox')"
            ) from error
    return found


def with_classes_in_order(problem: Problem, rank: NDArray[np.int64]) -> Problem:
    """The same problem with class c numbered ``rank[c]``."""
    detections = problem.detections

    def moved(pairs: Pairs | None) -> Pairs | None:
        return None if pairs is None else (pairs[0], rank[pairs[1]])

    return replace(
        problem,
        label=rank[problem.label],
        detections=replace(detections, label=rank[detections.label]),
        negatives=moved(problem.negatives),
        not_exhaustive=moved(problem.not_exhaustive),
        letters=[problem.letters[row] for row in np.argsort(rank).tolist()],
    )


def without_classes(problem: Problem) -> Problem:
    """The same objects and detections, all of one class (for proposals)."""
    detections = problem.detections
    return replace(
        problem,
        num_classes=1,
        label=np.zeros_like(problem.label),
        detections=replace(detections, label=np.zeros_like(detections.label)),
        letters=[""],
    )


def pooled(problem: Problem, pool_of_class: NDArray[np.int64], num_pools: int) -> Problem:
    """Every (image, class) pair becomes an image of its own and its class a pool.

    Matching within a pair stays what it was, but all detections of a pool are now ranked together. Pairs are numbered
    by image and then class. Detections of pairs without an object or a verified absence go.

    Args:
        problem: under LVIS rules (lists present) or COCO rules (every class is verified in every image).
        pool_of_class: (C,) pool 0..num_pools-1 of every class, or -1 to leave the class out.
        num_pools: their number.
    """
    classes = problem.num_classes
    detections = problem.detections
    object_key = problem.image * classes + problem.label
    detection_key = detections.image_index * classes + detections.label
    known = [object_key]
    if problem.negatives is None:
        known.append(detection_key)
    else:
        known.append(problem.negatives[0] * classes + problem.negatives[1])
    pairs = np.unique(np.concatenate(known))
    pairs = pairs[pool_of_class[pairs % classes] >= 0]
    pool = pool_of_class[pairs % classes]

    kept_objects = np.flatnonzero(np.isin(object_key, pairs))
    kept_detections = detections.select(np.isin(detection_key, pairs))
    not_exhaustive = None
    if problem.not_exhaustive is not None:
        partial = np.isin(pairs, problem.not_exhaustive[0] * classes + problem.not_exhaustive[1])
        not_exhaustive = (np.flatnonzero(partial), pool[partial])
    new_image = np.searchsorted(pairs, kept_detections.image_index * classes + kept_detections.label)
    return replace(
        problem,
        sizes=problem.sizes[pairs // classes],
        num_classes=num_pools,
        image=np.searchsorted(pairs, object_key[kept_objects]).astype(np.int64),
        label=pool_of_class[problem.label[kept_objects]],
        boxes=problem.boxes[kept_objects],
        area=problem.area[kept_objects],
        crowd=problem.crowd[kept_objects],
        masks=None if problem.masks is None else [problem.masks[row] for row in kept_objects.tolist()],
        detections=replace(kept_detections, image_index=new_image, label=pool_of_class[kept_detections.label]),
        negatives=None if problem.negatives is None else (np.arange(len(pairs)), pool),
        not_exhaustive=not_exhaustive,
        letters=[""] * num_pools,
    )
