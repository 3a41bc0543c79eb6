"""Segmentations taken in batch by batch: sound ones in columns, broken ones as findings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.check_masks import defect
from longtail.data.findings import Findings
from longtail.data.masks import NONE, POLYGONS, RLE, MaskColumn, SegmentationError


class MaskEntries:
    """Collects segmentations.

    Args:
        findings: gets those that are broken by themselves, and annotations without one in a file that has some.
    """

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.count = 0
        self.pieces: list[MaskColumn] = []
        self.boxes: list[NDArray[np.float64]] = []
        self.lacking: list[tuple[int, Any]] = []

    def add(self, given: list[Any], ids: list[Any]) -> None:
        """The next annotations' segmentations, and their ids."""
        base, self.count = self.count, self.count + len(given)
        piece = self._sound(given, ids, base)
        bounds = np.full((len(given), 4), np.nan)
        polygon_bounds(piece, bounds)
        code_bounds(piece, bounds)
        empty = np.flatnonzero((piece.kind == RLE) & (bounds[:, 2:] == 0).any(axis=1))
        for row in empty.tolist():
            self.findings.add("mask-empty", base + row, ids[row], f"{ids[row]!r}: {given[row]!r}"[:80])
        if len(empty):
            bounds[empty] = np.nan
            piece = without(piece, empty)
        self.pieces.append(piece)
        self.boxes.append(bounds)
        self.lacking += [(base + row, ids[row]) for row, value in enumerate(given) if value is None or value == []]

    def column(self) -> MaskColumn | None:
        """All of them; None if no annotation has one."""
        if len(self.lacking) == self.count:
            return None
        for row, identity in self.lacking:
            self.findings.add("mask-missing", row, identity, repr(identity))
        return MaskColumn.joined(self.pieces)

    def bounds(self) -> NDArray[np.float64]:
        """(A, 4) left, top, width, height of every sound mask, NaN where there is none."""
        return np.concatenate([np.zeros((0, 4)), *self.boxes])

    def _sound(self, given: list[Any], ids: list[Any], base: int) -> MaskColumn:
        """The column, broken segmentations replaced by none; those are looked for only if there are any."""
        try:
            return MaskColumn.from_json(given)
        except SegmentationError:
            pass
        kept = list(given)
        for row, value in enumerate(given):
            code = defect(value)
            if code not in ("", "mask-missing", "mask-empty"):
                self.findings.add(code, base + row, ids[row], f"{ids[row]!r}: {value!r}"[:80])
                kept[row] = None
        return MaskColumn.from_json(kept)


def polygon_bounds(column: MaskColumn, bounds: NDArray[np.float64]) -> None:
    """Fills in the bounds of annotations with polygons."""
    rows = np.flatnonzero(column.kind == POLYGONS)
    if not len(rows):
        return
    points, first = column.points.reshape(-1, 2), column.point_start[:-1] // 2
    begin = column.polygon_start[rows]  # every annotation here has a polygon, every polygon a point
    low = np.minimum.reduceat(np.minimum.reduceat(points, first), begin)
    high = np.maximum.reduceat(np.maximum.reduceat(points, first), begin)
    with np.errstate(over="ignore"):
        bounds[rows] = np.concatenate((low, high - low), axis=1)


def code_bounds(column: MaskColumn, bounds: NDArray[np.float64]) -> None:
    """Fills in the bounds of annotations with run lengths."""
    rows = np.flatnonzero(column.kind == RLE)
    if not len(rows):
        return
    from pycocotools import mask as codec

    bounds[rows] = codec.toBbox([column.rle(row, *column.code_size[row].tolist()) for row in rows.tolist()])


def without(column: MaskColumn, rows: NDArray[np.int64]) -> MaskColumn:
    """The column with no segmentation in some rows."""
    kept = column.kind.copy()
    kept[rows] = NONE
    return column.with_kind(kept)
