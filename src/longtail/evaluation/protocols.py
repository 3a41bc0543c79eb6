"""The protocols that share the matching of COCO and LVIS: what is capped, what is ignored, what is averaged."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from longtail.data.statistics import ClassStatistics
from longtail.data.table import AnnotationTable
from longtail.evaluation import engine
from longtail.evaluation.classes import GROUPS
from longtail.evaluation.detections import DetectionTable
from longtail.evaluation.federation import id_ranks
from longtail.evaluation.problem import Problem, make_problem, pooled, with_classes_in_order, without_classes
from longtail.evaluation.request import Request, make_request
from longtail.evaluation.result import EvaluationResult
from longtail.evaluation.summary import (
    Means,
    add_recalls,
    at_largest_cap,
    average_precisions,
    class_metrics,
)
from longtail.schema.errors import UsageError

COCO_LT_EDGES = (1, 20, 400, 8000)
"""Lower ends of the bins of training instances used for COCO-LT (FASA, table 6)."""


def lvis(
    detections: DetectionTable,
    truth: AnnotationTable,
    *,
    iou_type: str = "bbox",
    training: ClassStatistics | None = None,
    groups: Sequence[str] | None = None,
    max_detections: int | None = None,
) -> EvaluationResult:
    """LVIS: the best 300 of every image over all classes, then only classes known in the image are counted.

    Args:
        detections: rows with equal scores rank in row order.
        truth: evaluated annotations, with both federated lists in all images.
        iou_type: ``"bbox"`` or ``"segm"``.
        training: statistics of the training annotations, for groups and counts.
        groups: letter of every class, instead of those of ``training``.
        max_detections: per image; None = 300.
    """
    cap = 300 if max_detections is None else max_detections
    request = make_request("lvis", detections, truth, iou_type, training, groups, federated=True)
    problem = _problem(request, request.detections.cap_per_image(cap))
    curves = engine.run(problem, [cap], iou_type)
    means = average_precisions(curves, request.classes.letters)
    add_recalls(means, curves, [cap])
    return _finish(request, means, curves, {"per_image": cap})


def coco(
    detections: DetectionTable,
    truth: AnnotationTable,
    *,
    iou_type: str = "bbox",
    training: ClassStatistics | None = None,
    groups: Sequence[str] | None = None,
    max_detections: int | None = None,
) -> EvaluationResult:
    """COCO: the best 100 of every class in every image; average recall also at 1 and 10.

    Args:
        detections, truth, iou_type, training, groups: as in :func:`lvis`; federated lists are not looked at.
        max_detections: per class and image; None = 100.
    """
    cap = 100 if max_detections is None else max_detections
    request = make_request("coco", detections, truth, iou_type, training, groups, federated=False)
    if cap < 1:
        raise UsageError(f"a cap on detections must be at least 1, got {cap}")
    caps = sorted({*(small for small in (1, 10) if small < cap), cap})
    curves = engine.run(_problem(request, request.detections), caps, iou_type)
    means = average_precisions(curves, request.classes.letters)
    add_recalls(means, curves, caps)
    return _finish(request, means, curves, {"per_class_and_image": cap})


def fixed(
    detections: DetectionTable,
    truth: AnnotationTable,
    *,
    iou_type: str = "bbox",
    training: ClassStatistics | None = None,
    groups: Sequence[str] | None = None,
    max_detections: int | None = None,
) -> EvaluationResult:
    """AP^Fixed (Dave et al., 2021): the best 10,000 of every class over all images, no cap per image.

    Annotations without federated lists are evaluated likewise, every class then being known in every image.

    Args:
        detections, truth, iou_type, training, groups: as in :func:`lvis`. The detector must not have been limited per
            image, or the value comes out too low.
        max_detections: per class; None = 10,000.
    """
    cap = 10_000 if max_detections is None else max_detections
    request = make_request("fixed", detections, truth, iou_type, training, groups, federated=truth.federated)
    _note_class_cap(request, cap)
    problem = _problem(request, request.detections.cap_per_class(cap))
    curves = engine.run(problem, [engine.NO_LIMIT], iou_type)
    means = average_precisions(curves, request.classes.letters)
    add_recalls(means, curves, [None])
    return _finish(request, means, curves, {"per_class": cap})


def pool(
    detections: DetectionTable,
    truth: AnnotationTable,
    *,
    iou_type: str = "bbox",
    training: ClassStatistics | None = None,
    groups: Sequence[str] | None = None,
    max_detections: int | None = None,
) -> EvaluationResult:
    """AP^Pool (Dave et al., 2021): one curve over the detections of all classes, so that scores must be comparable.

    Caps as in :func:`fixed`. The pools are all classes and the groups. Equal scores rank by image id, class, and rank
    within the two. Metrics are AP alone; the rows of classes have none.

    Args:
        detections, truth, iou_type, training, groups, max_detections: as in :func:`fixed`.
    """
    cap = 10_000 if max_detections is None else max_detections
    request = make_request("pool", detections, truth, iou_type, training, groups, federated=truth.federated)
    _note_class_cap(request, cap)
    problem = _problem(request, request.detections.cap_per_class(cap))
    problem = with_classes_in_order(problem, id_ranks(truth.category_ids))
    everything = pooled(problem, np.zeros(truth.num_classes, dtype=np.int64), 1)
    curves = engine.run(everything, [engine.NO_LIMIT], iou_type)
    means = Means()
    _add_pool(means, "AP", curves, 0, request, list(range(truth.num_classes)))
    numbers = {letter: number for number, letter in enumerate(GROUPS)}
    pool_of_class = np.array([numbers.get(letter, -1) for letter in problem.letters], dtype=np.int64)
    by_group = engine.run(pooled(problem, pool_of_class, len(GROUPS)), [engine.NO_LIMIT], iou_type)
    for letter, number in numbers.items():
        members = [row for row, own in enumerate(request.classes.letters) if own == letter]
        _add_pool(means, f"AP{letter}", by_group, number, request, members)
    return _finish(request, means, curves, {"per_class": cap}, with_classes=False)


def bins(
    detections: DetectionTable,
    truth: AnnotationTable,
    *,
    iou_type: str = "bbox",
    training: ClassStatistics | None = None,
    groups: Sequence[str] | None = None,
    max_detections: int | None = None,
    edges: Sequence[int] = COCO_LT_EDGES,
) -> EvaluationResult:
    """AP by number of training instances: ``AP1`` for the first bin, ``AP2`` for the second, ....

    Otherwise as :func:`lvis` where all images carry the federated lists and as :func:`coco` where not.

    Args:
        detections, truth, iou_type, groups, max_detections: as in the protocol underneath.
        training: statistics of the training annotations; needed.
        edges: lower ends of the bins, ascending, from 1; the last bin is open. Classes without a training instance
            are in no bin.

    Raises:
        UsageError: no statistics, or edges that do not ascend from at least 1.
    """
    if training is None:
        raise UsageError("the protocol 'bins' needs the statistics of the training annotations")
    if not 1 <= len(edges) <= 9 or edges[0] < 1 or any(a >= b for a, b in itertools.pairwise(edges)):
        raise UsageError(f"edges of bins must be 1 to 9 ascending numbers from 1 on, got {list(edges)}")
    standard_cap = 300 if truth.federated else 100
    cap = standard_cap if max_detections is None else max_detections
    request = make_request("bins", detections, truth, iou_type, training, groups, federated=truth.federated)
    given = request.detections.cap_per_image(cap) if request.federated else request.detections
    curves = engine.run(_problem(request, given), [cap], iou_type)
    means = average_precisions(curves, request.classes.letters)
    counts = request.classes.train_instances
    assert counts is not None
    bin_of_class = np.searchsorted(np.asarray(edges), counts, side="right")
    ranges = {}
    for number, low in enumerate(edges, start=1):
        means.add(f"AP{number}", at_largest_cap(curves)[:, :, bin_of_class == number])
        ranges[f"AP{number}"] = [low, edges[number] if number < len(edges) else None]
    outside = int((bin_of_class == 0).sum())
    if outside:
        request.notes.append(f"{outside} classes have fewer than {edges[0]} training instances and are in no bin")
    request.settings["bins"] = ranges
    add_recalls(means, curves, [cap])
    caps = {"per_image" if request.federated else "per_class_and_image": cap}
    return _finish(request, means, curves, caps)


def proposals(
    detections: DetectionTable, truth: AnnotationTable, *, caps: Sequence[int] = (100, 300, 1000)
) -> EvaluationResult:
    """Average recall of class-agnostic boxes, at several numbers of boxes per image; labels are not looked at.

    Args:
        detections: boxes with scores.
        truth: objects of all classes count alike; COCO rules.
        caps: numbers of boxes per image, ascending.
    """
    if not caps or caps[0] < 1 or any(a >= b for a, b in itertools.pairwise(caps)):
        raise UsageError(f"caps on proposals must be ascending numbers from 1 on, got {list(caps)}")
    unlabelled = replace(detections, label=np.zeros_like(detections.label))
    request = make_request("proposals", unlabelled, truth, "bbox", None, None, federated=False)
    problem = without_classes(_problem(request, request.detections))
    curves = engine.run(problem, list(caps), "bbox")
    means = Means()
    add_recalls(means, curves, list(caps))
    return _finish(request, means, curves, {"per_image": list(caps)}, with_classes=False, keep_rows=False)


def _problem(request: Request, detections: DetectionTable) -> Problem:
    return make_problem(
        detections,
        request.truth,
        iou_type=request.iou_type,
        federated=request.federated,
        letters=request.classes.letters,
    )


def _add_pool(
    means: Means, name: str, curves: engine.Curves, number: int, request: Request, members: list[int]
) -> None:
    """One pool's AP; behind it stand the classes of the pool that have objects."""
    means.add(name, curves.precision[:, :, [number], 0, -1])
    populated = sum(request.rows[member].objects > 0 for member in members)
    means.classes_behind[name] = {"classes": len(members), "with_objects": populated}


def _note_class_cap(request: Request, cap: int) -> None:
    detections = request.detections
    found = np.bincount(detections.label, minlength=request.truth.num_classes)
    short = int((found < cap).sum())
    if short:
        request.notes.append(
            f"{short} of {len(found)} classes have fewer than {cap} detections; more of them could only raise the value"
        )
    if len(detections):
        most = int(np.bincount(detections.image_index).max())
        if most <= 300:
            request.notes.append(
                f"no image has more than {most} detections: if the detector was limited per image, the value is too low"
            )


def _finish(
    request: Request,
    means: Means,
    curves: engine.Curves,
    caps: dict[str, Any],
    *,
    with_classes: bool = True,
    keep_rows: bool = True,
) -> EvaluationResult:
    rows = request.rows if keep_rows else []
    if with_classes:
        rows = [row.measured(*values) for row, values in zip(rows, class_metrics(curves), strict=True)]
    return request.result(
        means,
        rows,
        {
            "caps": caps,
            "engine": engine.engine_version(),
            "engine_provenance": curves.provenance,
            "engine_deviations": curves.deviations,
        },
    )
