"""A store that keeps the best detections of every class while a detector runs, for AP^Fixed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtail.evaluation.detections import DetectionTable


class BestPerClass:
    """Collects detections batch by batch without keeping those that cannot be among the best of their class.

    A detector that is not limited per image finds far more boxes than AP^Fixed looks at. ``thresholds`` tells it which
    scores are still of use, so that it need not compute their masks.

    Args:
        num_classes: C.
        limit: detections kept of every class; AP^Fixed uses 10,000.
        floor: scores below are never kept.
    """

    def __init__(self, num_classes: int, *, limit: int = 10_000, floor: float = 0.0) -> None:
        self.limit = limit
        self.thresholds: NDArray[np.float64] = np.full(num_classes, floor)
        self._kept = DetectionTable.empty()
        self._pending: list[DetectionTable] = []
        self._num_pending = 0

    def add(self, detections: DetectionTable) -> None:
        """Take the detections of some images, in any order of images."""
        useful = detections.select(detections.score >= self.thresholds[detections.label])
        self._pending.append(useful)
        self._num_pending += len(useful)
        if self._num_pending > max(100_000, len(self._kept)):
            self._prune()

    def table(self) -> DetectionTable:
        """The best of every class, by image; of equal scores those of earlier images."""
        self._prune()
        return self._kept.sort_by_image().cap_per_class(self.limit)

    def _prune(self) -> None:
        joined = DetectionTable.concatenate([self._kept, *self._pending])
        self._pending, self._num_pending = [], 0
        # The limit-th best score of a class so far: lower ones are of no use, equal ones may come from earlier images.
        order = np.lexsort((-joined.score, joined.label))
        counts = np.bincount(joined.label, minlength=len(self.thresholds))
        full = np.flatnonzero(counts >= self.limit)
        last = (np.cumsum(counts) - counts)[full] + self.limit - 1
        self.thresholds[full] = np.maximum(self.thresholds[full], joined.score[order[last]])
        self._kept = joined.select(joined.score >= self.thresholds[joined.label])
