"""What goes wrong: AP lost to each kind of error (TIDE: Bolya et al., 2020) and which classes are taken for which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from longtail.data.table import AnnotationTable
from longtail.evaluation import engine
from longtail.evaluation.detections import DetectionTable
from longtail.evaluation.problem import make_problem
from longtail.evaluation.request import make_request


@dataclass(frozen=True)
class ErrorAnalysis:
    """Errors at IoU 0.5.

    Attributes:
        ap50: AP at IoU 0.5 as a fraction, the base of what follows; None without objects.
        lost: AP50 that would be gained by repairing all errors of a kind: ``Cls`` wrong class, ``Loc`` overlap between
            0.1 and 0.5, ``Both``, ``Dupe`` second detection of an object, ``Bkg`` no object there, ``Miss`` object not
            found; ``FP`` and ``FN`` all false positives and all misses.
        counts: number of errors of each kind.
        confusions: (id of the object's class, id of the detected class, number), the most frequent first; an id is
            None for "no object" or "not detected".
    """

    ap50: float | None
    lost: dict[str, float]
    counts: dict[str, int]
    confusions: list[tuple[int | str | None, int | str | None, int]]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "ap50": self.ap50,
            "lost": self.lost,
            "counts": self.counts,
            "confusions": [list(entry) for entry in self.confusions],
        }


def analyse_errors(
    detections: DetectionTable,
    truth: AnnotationTable,
    *,
    iou_type: str = "bbox",
    min_score: float = 0.3,
    most: int = 50,
) -> ErrorAnalysis:
    """Take the errors of a detector apart.

    LVIS rules where all images carry the federated lists, with 300 detections per image; otherwise COCO rules with 100
    per class and image. Under LVIS rules only detections of known classes count, so numbers differ from COCO's.

    Args:
        detections, truth, iou_type: as in :func:`longtail.evaluation.lvis`.
        min_score: detections below take no part in ``confusions``.
        most: length of ``confusions`` at most.
    """
    federated = truth.federated
    request = make_request("errors", detections, truth, iou_type, None, None, federated=federated)
    cap = 300 if federated else 100
    given = request.detections.cap_per_image(cap) if federated else request.detections
    problem = make_problem(given, truth, iou_type=iou_type, federated=federated, letters=[""] * truth.num_classes)
    evaluator = engine.matcher(problem, [cap], iou_type)
    evaluator.evaluate()
    found = evaluator.tide_errors()
    matrix = np.asarray(evaluator.confusion_matrix(min_score=min_score)["matrix"], dtype=np.int64)
    np.fill_diagonal(matrix, 0)
    ids = [*truth.category_ids.tolist(), None]
    wrong = np.argwhere(matrix)
    order = np.argsort(-matrix[wrong[:, 0], wrong[:, 1]], kind="stable")[:most]
    confusions = [(ids[row], ids[column], int(matrix[row, column])) for row, column in wrong[order].tolist()]
    has_objects = any(row.objects for row in request.rows)
    return ErrorAnalysis(
        ap50=float(found["ap_base"]) if has_objects else None,
        lost={name: float(value) for name, value in found["delta_ap"].items()},
        counts={name: int(value) for name, value in found["counts"].items()},
        confusions=confusions,
    )
