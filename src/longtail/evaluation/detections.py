"""Detections in columns: one row per detection, filters and caps as array operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longtail.data.table import AnnotationTable
from longtail.evaluation import results_file
from longtail.evaluation.federation import known_pairs
from longtail.schema.errors import DataError, UsageError

Rle = dict[str, Any]
"""A compressed run-length mask ``{"size": [height, width], "counts": bytes}``, column-major."""


@dataclass(frozen=True, eq=False)
class DetectionTable:
    """Detections of any number of images.

    The order of the rows matters in one way only: detections with equal scores rank in row order.

    Args:
        image_index: (D,) row of the image in the annotation table.
        label: (D,) class, 0..C-1.
        score: (D,) finite; larger is surer.
        boxes: (D, 4) ``x, y, width, height`` in pixels of the original picture.
        rles: D masks, or None for boxes alone.
        dropped: what was left out while the table was made: reason -> number of detections.

    Raises:
        DataError: columns of different lengths, a negative index, or a score or coordinate that is not finite.
    """

    image_index: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    boxes: NDArray[np.float64]
    rles: list[Rle] | None = None
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("image_index", np.int64), ("label", np.int64), ("score", np.float64)):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=kind))
        object.__setattr__(self, "boxes", np.ascontiguousarray(self.boxes, dtype=np.float64).reshape(-1, 4))
        self._check()

    def _check(self) -> None:
        columns: dict[str, Any] = {"label": self.label, "score": self.score, "boxes": self.boxes, "rles": self.rles}
        for name, column in columns.items():
            if column is not None and len(column) != len(self.image_index):
                raise DataError(f"detections: {len(self.image_index)} image indices but {len(column)} rows of {name}")
        for name, bad in (
            ("a score that is NaN or infinite", ~np.isfinite(self.score)),
            ("a box coordinate that is NaN or infinite", ~np.isfinite(self.boxes).all(axis=1)),
            ("a negative image index", self.image_index < 0),
            ("a negative class index", self.label < 0),
        ):
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                raise DataError(
                    f"detections: {int(bad.sum())} of {len(self)} have {name}, the first in row {row} "
                    f"(image index {self.image_index[row]}); repair the detector's output before evaluating it"
                )

    def __len__(self) -> int:
        return len(self.image_index)

    @classmethod
    def empty(cls) -> DetectionTable:
        """A table without detections."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 4)))

    @classmethod
    def concatenate(cls, tables: Sequence[DetectionTable]) -> DetectionTable:
        """All rows of all tables, in the order given; counts of dropped detections are added up.

        Raises:
            UsageError: some tables carry masks and others do not.
        """
        dropped: dict[str, int] = {}
        for table in tables:
            for reason, number in table.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + number
        filled = [table for table in tables if len(table)]
        if not filled:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 4)), None, dropped)
        masks = [table.rles for table in filled if table.rles is not None]
        if masks and len(masks) != len(filled):
            raise UsageError("cannot join detections with masks to detections without; join boxes and masks apart")
        return cls(
            image_index=np.concatenate([table.image_index for table in filled]),
            label=np.concatenate([table.label for table in filled]),
            score=np.concatenate([table.score for table in filled]),
            boxes=np.concatenate([table.boxes for table in filled]),
            rles=[rle for column in masks for rle in column] if masks else None,
            dropped=dropped,
        )

    def select(self, rows: ArrayLike) -> DetectionTable:
        """The given rows: indices in any order, or a boolean mask of length D."""
        chosen = np.asarray(rows)
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        return DetectionTable(
            image_index=self.image_index[index],
            label=self.label[index],
            score=self.score[index],
            boxes=self.boxes[index],
            rles=None if self.rles is None else [self.rles[row] for row in index.tolist()],
            dropped=dict(self.dropped),
        )

    def sort_by_image(self) -> DetectionTable:
        """Rows by image index, each image's in their present order.

        Do this before anything that breaks ties when several processes delivered their parts in no fixed order.
        """
        return self.select(np.argsort(self.image_index, kind="stable"))

    def cap_per_image(self, limit: int) -> DetectionTable:
        """The ``limit`` best detections of every image over all classes; row order is kept, and decides ties."""
        return self.select(_rank_within(self.image_index, self.score) < _at_least_one(limit))

    def cap_per_class(self, limit: int) -> DetectionTable:
        """The ``limit`` best detections of every class over all images; row order is kept, and decides ties."""
        return self.select(_rank_within(self.label, self.score) < _at_least_one(limit))

    def federated(self, truth: AnnotationTable) -> DetectionTable:
        """Only detections whose class is known in their image: it has an object there or is verified absent.

        Raises:
            DataError: the annotations do not carry both lists in all images.
        """
        known = known_pairs(truth)
        return self.select(np.isin(self.image_index * truth.num_classes + self.label, known))

    def without_degenerate(self) -> DetectionTable:
        """Without boxes whose width or height is not positive; their number is added to ``dropped``."""
        bad = (self.boxes[:, 2:] <= 0).any(axis=1)
        if not bad.any():
            return self
        kept = self.select(~bad)
        reason = "box without area"
        kept.dropped[reason] = kept.dropped.get(reason, 0) + int(bad.sum())
        return kept

    def check_against(self, truth: AnnotationTable) -> None:
        """See that every row names an image and a class of ``truth``.

        Raises:
            DataError: an index beyond the table.
        """
        for name, column, count in (
            ("image", self.image_index, truth.num_images),
            ("class", self.label, truth.num_classes),
        ):
            if len(column) and int(column.max()) >= count:
                raise DataError(
                    f"detections: {name} index {int(column.max())}, but {truth.source} has only {count}; "
                    "they belong to other annotations"
                )

    @classmethod
    def from_coco_results(
        cls, source: results_file.Source, table: AnnotationTable, *, unknown: str = "error"
    ) -> DetectionTable:
        """Detections in the COCO or LVIS results format; see :func:`results_file.read`."""
        return cls(**results_file.read(source, table, unknown=unknown))

    def to_coco_results(self, table: AnnotationTable, iou_type: str) -> list[dict[str, Any]]:
        """The COCO results format with original ids; see :func:`results_file.entries`."""
        return list(results_file.entries(self, table, iou_type))

    def write_json(self, path: results_file.StrPath, table: AnnotationTable, iou_type: str) -> None:
        """Write the COCO results format in one step: the file is either complete or untouched."""
        results_file.write(self, path, table, iou_type)


def _rank_within(group: NDArray[np.int64], score: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank of every row among those of its group, best score first, ties in row order."""
    order = np.lexsort((-score, group))
    ordered = group[order]
    position = np.arange(len(order))
    first = np.ones(len(order), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = position - np.maximum.accumulate(np.where(first, position, 0))
    return rank


def _at_least_one(limit: int) -> int:
    if limit < 1:
        raise UsageError(f"a cap on detections must be at least 1, got {limit}")
    return limit
