"""From the engine's arrays to metrics: means over classes that leave out those without objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longtail.data.table import AnnotationTable
from longtail.evaluation.classes import GROUPS, UNSEEN, ClassInfo
from longtail.evaluation.detections import DetectionTable
from longtail.evaluation.engine import Curves
from longtail.evaluation.result import ClassResult

SIZES = ("", "s", "m", "l")
"""Suffixes of the four size ranges: all, up to 32² pixels, up to 96² (both ends belong to both), larger."""


class Means:
    """Named metrics with the number of classes behind each."""

    def __init__(self) -> None:
        self.metrics: dict[str, float | None] = {}
        self.classes_behind: dict[str, dict[str, int]] = {}

    def add(self, name: str, values: NDArray[np.float64]) -> None:
        """Mean of ``values`` (..., C), where -1 means that a class has no object: left out, not 0."""
        measured = values > -1
        self.metrics[name] = float(np.mean(values[measured])) if measured.any() else None
        behind = measured.any(axis=tuple(range(values.ndim - 1)))
        self.classes_behind[name] = {"classes": values.shape[-1], "with_objects": int(behind.sum())}


def average_precisions(curves: Curves, letters: Sequence[str]) -> Means:
    """AP, AP50, AP75, by size and by group (None where groups are unknown); at the largest cap."""
    means = Means()
    means.add("AP", at_largest_cap(curves))
    means.add("AP50", curves.precision[Curves.IOU_50, :, :, 0, -1])
    means.add("AP75", curves.precision[Curves.IOU_75, :, :, 0, -1])
    for size in (1, 2, 3):
        means.add(f"AP{SIZES[size]}", curves.precision[:, :, :, size, -1])
    add_groups(means, "AP", at_largest_cap(curves), letters)
    return means


def add_groups(means: Means, name: str, values: NDArray[np.float64], letters: Sequence[str]) -> None:
    """Means over the classes of each group, as ``APr``, ``APc``, ``APf`` and, if it has classes, ``AP-``."""
    of_class = np.array(list(letters), dtype="U1")
    for group in (*GROUPS, UNSEEN):
        chosen = of_class == group
        if group != UNSEEN or chosen.any():
            means.add(f"{name}{group}", values[..., chosen])


def add_recalls(means: Means, curves: Curves, caps: Sequence[int | None]) -> None:
    """AR at every cap (``AR@10``; without a cap ``AR``), and by size at the largest, as ``AR``, ``ARs``, ...."""
    for column, cap in enumerate(caps):
        if cap is not None:
            means.add(f"AR@{cap}", curves.recall[:, :, 0, column])
    for size, suffix in enumerate(SIZES):
        means.add(f"AR{suffix}", curves.recall[:, :, size, -1])


def at_largest_cap(curves: Curves) -> NDArray[np.float64]:
    """(T, R, C) precision over all sizes."""
    return curves.precision[:, :, :, 0, -1]


def class_rows(
    truth: AnnotationTable, detections: DetectionTable, classes: ClassInfo, *, skip_crowd: bool, skip_ignored: bool
) -> list[ClassResult]:
    """A row for every class, still without metrics.

    Args:
        truth, detections: as they were given.
        classes: groups and training counts.
        skip_crowd, skip_ignored: which objects the protocol does not count.
    """
    counted = np.ones(len(truth.label), dtype=bool)
    if skip_crowd:
        counted &= ~truth.iscrowd
    if skip_ignored:
        counted &= ~truth.ignore
    objects = np.bincount(truth.label[counted], minlength=truth.num_classes).tolist()
    found = np.bincount(detections.label, minlength=truth.num_classes).tolist()
    images = [None] * truth.num_classes if classes.train_images is None else classes.train_images.tolist()
    instances = [None] * truth.num_classes if classes.train_instances is None else classes.train_instances.tolist()
    columns = zip(
        truth.category_ids.tolist(),
        truth.category_names,
        classes.letters,
        images,
        instances,
        objects,
        found,
        strict=True,
    )
    return [ClassResult(*row) for row in columns]


def class_metrics(curves: Curves) -> list[tuple[float | None, ...]]:
    """For every class AP, AP50, AR, the largest F1 at IoU .50 and the score where it is reached."""
    precision = at_largest_cap(curves)
    recalls = np.linspace(0.0, 1.0, precision.shape[1])[:, None]
    at_50 = precision[Curves.IOU_50]
    f1 = 2 * at_50 * recalls / np.maximum(at_50 + recalls, np.finfo(np.float64).eps)
    best = f1.argmax(axis=0)
    column = np.arange(precision.shape[2])
    best_f1 = np.where(at_50[0] > -1, f1[best, column], -1.0)
    best_score = np.where(best_f1 > 0, curves.scores[Curves.IOU_50, :, :, 0, -1][best, column], np.nan)
    columns = (
        precision.mean(axis=(0, 1)),
        at_50.mean(axis=0),
        curves.recall[:, :, 0, -1].mean(axis=0),
        best_f1,
        best_score,
    )
    return list(zip(*(optional(values) for values in columns), strict=True))


def optional(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers, with None for -1 and NaN."""
    return [None if value == -1 or np.isnan(value) else value for value in values.tolist()]
