"""One entry for all protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from longtail.data.statistics import ClassStatistics
from longtail.data.table import AnnotationTable
from longtail.evaluation.detections import DetectionTable
from longtail.evaluation.pascal_voc import voc
from longtail.evaluation.protocols import bins, coco, fixed, lvis, pool, proposals
from longtail.evaluation.result import EvaluationResult
from longtail.schema.errors import UsageError

PROTOCOLS = ("auto", "lvis", "coco", "voc", "fixed", "pool", "bins", "proposals")


def evaluate(
    detections: DetectionTable,
    truth: AnnotationTable,
    *,
    protocol: str = "auto",
    iou_type: str = "bbox",
    training: ClassStatistics | None = None,
    groups: Sequence[str] | None = None,
    max_detections: int | None = None,
) -> EvaluationResult:
    """Metrics of detections.

    Args:
        detections: in columns, in the class and image numbers of ``truth``.
        truth: evaluated annotations.
        protocol: one of :data:`PROTOCOLS`; ``"auto"`` is LVIS if *all* images carry both federated lists, otherwise
            COCO. A plain COCO file under LVIS rules would lose every false positive in images without the class.
            ``"proposals"`` looks at no classes and measures average recall.
        iou_type: ``"bbox"`` or ``"segm"``.
        training: statistics of the training annotations, from which alone groups are made.
        groups: letter of every class, instead of those of ``training``.
        max_detections: the protocol's own cap; None = what is published (300 per image, 100 per class and image, none,
            10,000 per class, as LVIS or COCO).

    Raises:
        UsageError: an unknown protocol, or a combination that makes no sense.
        DataError: detections that do not belong to ``truth``, or annotations the protocol cannot use.
    """
    if protocol == "proposals":
        if iou_type != "bbox" or max_detections is not None:
            raise UsageError("the protocol 'proposals' measures boxes (iou_type='bbox') at caps of its own")
        return proposals(detections, truth)
    run = {"lvis": lvis, "coco": coco, "voc": voc, "fixed": fixed, "pool": pool, "bins": bins}.get(
        automatic(truth) if protocol == "auto" else protocol
    )
    if run is None:
        raise UsageError(f"unknown protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    return run(detections, truth, iou_type=iou_type, training=training, groups=groups, max_detections=max_detections)


def automatic(truth: AnnotationTable) -> Literal["lvis", "coco"]:
    """The protocol the annotations are made for."""
    return "lvis" if truth.federated else "coco"
