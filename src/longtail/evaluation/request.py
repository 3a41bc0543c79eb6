"""What every protocol does first and last: check the input, note what is special about it, and sign the result."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import longtail
from longtail.data.statistics import ClassStatistics
from longtail.data.table import AnnotationTable
from longtail.evaluation.classes import ClassInfo, describe_classes
from longtail.evaluation.detections import DetectionTable
from longtail.evaluation.result import ClassResult, EvaluationResult
from longtail.evaluation.summary import Means, class_rows
from longtail.schema.errors import UsageError


@dataclass(frozen=True, eq=False)
class Request:
    """Checked input of one evaluation, with notes and settings that grow until the result is made.

    Attributes:
        protocol, iou_type: as asked for.
        detections: without boxes that have no area.
        truth: evaluated annotations.
        federated: whether LVIS rules hold.
        classes: groups and training counts.
        rows: one per class, still without metrics.
    """

    protocol: str
    iou_type: str
    detections: DetectionTable
    truth: AnnotationTable
    federated: bool
    classes: ClassInfo
    rows: list[ClassResult]
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def result(self, means: Means, rows: Sequence[ClassResult], settings: dict[str, Any]) -> EvaluationResult:
        """The metrics with everything a reader needs to judge them."""
        return EvaluationResult(
            protocol=self.protocol,
            iou_type=self.iou_type,
            metrics=means.metrics,
            classes_behind=means.classes_behind,
            per_class={row.id: row for row in rows},
            notes=self.notes,
            settings={
                "protocol": self.protocol,
                "iou_type": self.iou_type,
                "source": self.truth.source,
                "images": self.truth.num_images,
                "classes": self.truth.num_classes,
                "objects": sum(row.objects for row in self.rows),
                "detections": len(self.detections),
                "dropped": dict(self.detections.dropped),
                "federated": self.federated,
                "groups": self.classes.origin,
                "group_sizes": group_sizes(self.rows),
                "versions": versions(),
                **self.settings,
                **settings,
            },
        )


def make_request(
    protocol: str,
    detections: DetectionTable,
    truth: AnnotationTable,
    iou_type: str,
    training: ClassStatistics | None,
    groups: Sequence[str] | None,
    *,
    federated: bool,
) -> Request:
    """Check the input.

    Args:
        protocol: its name.
        detections, truth, iou_type, training, groups: as in the protocols.
        federated: whether LVIS rules hold.

    Raises:
        UsageError: an unknown ``iou_type``.
        DataError: detections of images or classes that ``truth`` does not have.
    """
    if iou_type not in ("bbox", "segm"):
        raise UsageError(f"iou_type must be 'bbox' or 'segm', got {iou_type!r}")
    detections.check_against(truth)
    usable = detections.without_degenerate() if iou_type == "bbox" else detections
    classes = describe_classes(truth, training, groups)
    rows = class_rows(truth, usable, classes, skip_crowd=not federated, skip_ignored=federated or protocol == "voc")
    request = Request(
        protocol=protocol,
        iou_type=iou_type,
        detections=usable,
        truth=truth,
        federated=federated,
        classes=classes,
        rows=rows,
    )
    request.notes.extend(_remarks(request))
    return request


def _remarks(request: Request) -> list[str]:
    truth, protocol = request.truth, request.protocol
    notes = [f"left out {number} detections: {reason}" for reason, number in request.detections.dropped.items()]
    if not len(request.detections):
        notes.append("there are no detections")
    if not any(row.objects for row in request.rows):
        notes.append("there are no objects to find, so there is nothing to measure")
    if not request.classes.has_groups and protocol != "proposals":
        notes.append("no training statistics were given, so there are no metrics of rare, common and frequent classes")
    crowds, ignored = int(truth.iscrowd.sum()), int(truth.ignore.sum())
    if crowds and request.federated:
        notes.append(f"{crowds} crowd objects count as ordinary objects, as in the LVIS reference")
    if ignored and not request.federated and protocol != "voc":
        notes.append(f"{ignored} objects with the ignore flag count as ordinary objects, as in the COCO reference")
    if request.iou_type == "segm" and truth.masks is not None:
        bare = int((truth.masks.kind == 0).sum())
        if bare:
            notes.append(f"{bare} objects have no mask and count as missed")
    if protocol in ("fixed", "pool") and not request.federated:
        notes.append("the annotations have no federated lists: every class counts as known in every image")
    return notes


def group_sizes(rows: Sequence[ClassResult]) -> dict[str, dict[str, int]]:
    """Number of classes in each group, in all and with objects."""
    sizes: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.group:
            size = sizes.setdefault(row.group, {"classes": 0, "with_objects": 0})
            size["classes"] += 1
            size["with_objects"] += row.objects > 0
    return sizes


def versions() -> dict[str, str]:
    """Versions of everything that has a say in the numbers."""
    found = {name: importlib.metadata.version(name) for name in ("hotcoco", "numpy", "pycocotools")}
    return {"longtail": longtail.__version__, "python": platform.python_version(), **found}
