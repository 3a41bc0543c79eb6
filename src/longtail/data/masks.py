"""Masks of a whole data set in flat columns, decoded only when somebody asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NONE, POLYGONS, RLE = 0, 1, 2


@dataclass(frozen=True)
class MaskColumn:
    """One segmentation per annotation.

    Attributes:
        kind: (A,) uint8: 0 = none, 1 = polygons, 2 = run-length encoding.
        polygon_start: (A + 1,) polygons of annotation a are ``polygon_start[a]:polygon_start[a + 1]``.
        point_start: (P + 1,) coordinates of polygon p are ``points[point_start[p]:point_start[p + 1]]``.
        points: x, y, x, y, ... of all polygons, in pixels.
        code_start: (A + 1,) run lengths of annotation a are ``codes[code_start[a]:code_start[a + 1]]``, compressed.
        codes: bytes of all run lengths.
        code_size: (A, 2) height and width of every run-length encoding, 0 elsewhere.
    """

    kind: NDArray[np.uint8]
    polygon_start: NDArray[np.int64]
    point_start: NDArray[np.int64]
    points: NDArray[np.float64]
    code_start: NDArray[np.int64]
    codes: NDArray[np.uint8]
    code_size: NDArray[np.int32]

    @classmethod
    def from_json(cls, segmentations: Sequence[Any]) -> MaskColumn:
        """From COCO's forms: a list of polygons, ``{"size", "counts"}`` with text or a list, or None.

        Raises:
            ValueError: anything else; the message starts with the position in ``segmentations``.
        """
        kinds = np.zeros(len(segmentations), dtype=np.uint8)
        polygons: list[int] = []
        lengths: list[int] = []
        parts: list[NDArray[np.float64]] = []
        codes: list[bytes] = []
        sizes = np.zeros((len(segmentations), 2), dtype=np.int32)
        for row, given in enumerate(segmentations):
            own_polygons, code = 0, b""
            if isinstance(given, dict):
                kinds[row] = RLE
                code, sizes[row] = _code(given, row)
            elif isinstance(given, list) and given:
                kinds[row] = POLYGONS
                own_polygons = len(given)
                for polygon in given:
                    part = _polygon(polygon, row)
                    parts.append(part)
                    lengths.append(len(part))
            elif given not in (None, []):
                raise ValueError(f"{row}: a segmentation is a list of polygons or a run-length encoding")
            polygons.append(own_polygons)
            codes.append(code)
        return cls(
            kind=kinds,
            polygon_start=_starts(polygons),
            point_start=_starts(lengths),
            points=np.concatenate(parts) if parts else np.zeros(0),
            code_start=_starts([len(code) for code in codes]),
            codes=np.frombuffer(b"".join(codes), dtype=np.uint8),
            code_size=sizes,
        )

    def __len__(self) -> int:
        return len(self.kind)

    def polygons(self, row: int) -> list[NDArray[np.float64]]:
        """Polygons of one annotation, each x, y, x, y, ... in pixels."""
        first, last = self.polygon_start[row], self.polygon_start[row + 1]
        return [self.points[self.point_start[p] : self.point_start[p + 1]] for p in range(first, last)]

    def to_json(self, row: int) -> Any:
        """COCO's form of one annotation, run lengths as text; None where there is none."""
        if self.kind[row] == POLYGONS:
            return [polygon.tolist() for polygon in self.polygons(row)]
        if self.kind[row] == RLE:
            return {"size": self.code_size[row].tolist(), "counts": self._code(row).decode("ascii")}
        return None

    def rle(self, row: int, height: int, width: int) -> dict[str, Any]:
        """Compressed run lengths as pycocotools has them (``counts`` in bytes) of one annotation in a picture of the
        given size; an annotation without a segmentation gives an empty mask.

        Raises:
            ValueError: the encoding is for a picture of another size.
        """
        from pycocotools import mask as codec

        if self.kind[row] == RLE:
            own = self.code_size[row].tolist()
            if own != [height, width]:
                raise ValueError(f"the mask is {own[0]} x {own[1]} (height x width), the picture {height} x {width}")
            return {"size": own, "counts": self._code(row)}
        if self.kind[row] == NONE:
            empty: dict[str, Any] = codec.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
            return empty
        pieces = codec.frPyObjects([polygon.tolist() for polygon in self.polygons(row)], height, width)
        merged: dict[str, Any] = codec.merge(pieces)
        return merged

    def decode(self, rows: Sequence[int] | NDArray[np.int64], height: int, width: int) -> NDArray[np.uint8]:
        """Masks (n, height, width) of 0 and 1."""
        from pycocotools import mask as codec

        if not len(rows):
            return np.zeros((0, height, width), dtype=np.uint8)
        stacked = codec.decode([self.rle(int(row), height, width) for row in rows])
        return np.ascontiguousarray(np.moveaxis(stacked, 2, 0))

    def take(self, rows: NDArray[np.int64]) -> MaskColumn:
        """The column of some annotations, in the order of ``rows``."""
        polygon_rows = _ranges(self.polygon_start, rows)
        return MaskColumn(
            kind=self.kind[rows],
            polygon_start=_starts(np.diff(self.polygon_start)[rows]),
            point_start=_starts(np.diff(self.point_start)[polygon_rows]),
            points=self.points[_ranges(self.point_start, polygon_rows)],
            code_start=_starts(np.diff(self.code_start)[rows]),
            codes=self.codes[_ranges(self.code_start, rows)],
            code_size=self.code_size[rows],
        )

    def _code(self, row: int) -> bytes:
        return self.codes[self.code_start[row] : self.code_start[row + 1]].tobytes()


def _starts(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(np.asarray(lengths, dtype=np.int64)))).astype(np.int64)


def _ranges(start: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """All positions of the ranges ``start[row]:start[row + 1]``, one after the other."""
    lengths = np.diff(start)[rows]
    first = np.repeat(start[:-1][rows] - (np.cumsum(lengths) - lengths), lengths)
    return first + np.arange(int(lengths.sum()), dtype=np.int64)


def _polygon(polygon: Any, row: int) -> NDArray[np.float64]:
    try:
        part = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError):
        part = np.zeros(1)
    if part.ndim != 1 or len(part) < 6 or len(part) % 2 or not np.isfinite(part).all():
        raise ValueError(f"{row}: a polygon is a list x, y, x, y, ... of at least three points")
    return part


def _code(given: dict[str, Any], row: int) -> tuple[bytes, list[int]]:
    size, counts = given.get("size"), given.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise ValueError(f"{row}: a run-length encoding needs a size [height, width]")
    if isinstance(counts, list):
        from pycocotools import mask as codec

        counts = codec.frPyObjects({"size": list(size), "counts": counts}, size[0], size[1])["counts"]
    if isinstance(counts, str):
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes):
        raise ValueError(f"{row}: a run-length encoding needs counts, a text or a list")
    return counts, [int(size[0]), int(size[1])]
