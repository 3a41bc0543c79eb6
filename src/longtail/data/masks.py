"""Masks of a whole data set in flat columns, decoded only when somebody asks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

NONE, POLYGONS, RLE = 0, 1, 2
CHUNK = 1024  # annotations whose run lengths are added up at once
PICKED = 1 << 16  # ranges that are copied at once
Number = TypeVar("Number", np.float64, np.uint8)


class SegmentationError(ValueError):
    """A segmentation that cannot be used; ``row`` is its position."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(f"{row}: {text}")
        self.row = row
        self.text = text


@dataclass(frozen=True, eq=False)
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
            SegmentationError: anything else, or run lengths that do not add up to the size.
        """
        kinds = np.zeros(len(segmentations), dtype=np.uint8)
        counts = np.zeros(len(segmentations), dtype=np.int64)
        polygons: list[Any] = []
        codes: list[bytes] = [b""] * len(segmentations)
        sizes = np.zeros((len(segmentations), 2), dtype=np.int32)
        for row, given in enumerate(segmentations):
            if isinstance(given, dict):
                kinds[row] = RLE
                codes[row], sizes[row] = _code(given, row)
            elif isinstance(given, list):
                kinds[row] = POLYGONS if given else NONE
                counts[row] = len(given)
                polygons += given
            elif given is not None:
                raise SegmentationError(row, "a segmentation is a list of polygons or a run-length encoding")
        polygon_start = _starts(counts)
        points, lengths = _points(polygons, polygon_start)
        column = cls(
            kind=kinds,
            polygon_start=polygon_start,
            point_start=_starts(lengths),
            points=points,
            code_start=_starts([len(code) for code in codes]),
            codes=np.frombuffer(b"".join(codes), dtype=np.uint8),
            code_size=sizes,
        )
        column._refuse_wrong_totals()
        return column

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
            points=_picked(self.points, self.point_start, polygon_rows),
            code_start=_starts(np.diff(self.code_start)[rows]),
            codes=_picked(self.codes, self.code_start, rows),
            code_size=self.code_size[rows],
        )

    @classmethod
    def joined(cls, columns: list[MaskColumn]) -> MaskColumn:
        """One column after the other. The list is emptied on the way, so that the coordinates, most of a data set's
        memory, are not held twice."""
        kind = np.concatenate([column.kind for column in columns])
        polygon_start = _chain([column.polygon_start for column in columns])
        point_start = _chain([column.point_start for column in columns])
        code_start = _chain([column.code_start for column in columns])
        codes = np.concatenate([column.codes for column in columns])
        code_size = np.concatenate([column.code_size for column in columns])
        points = np.empty(int(point_start[-1]), dtype=np.float64)
        place = 0
        columns.reverse()
        while columns:
            own = columns.pop().points
            points[place : place + len(own)] = own
            place += len(own)
        return cls(kind, polygon_start, point_start, points, code_start, codes, code_size)

    def with_kind(self, kind: NDArray[np.uint8]) -> MaskColumn:
        """The same column with other kinds; a row whose kind becomes 0 has no segmentation any more."""
        return replace(self, kind=kind)

    def _code(self, row: int) -> bytes:
        return self.codes[self.code_start[row] : self.code_start[row + 1]].tobytes()

    def _refuse_wrong_totals(self) -> None:
        """Run lengths that stop early would be decoded into memory nobody has written to."""
        rows = np.flatnonzero(self.kind == RLE)
        for part in (rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK)):
            start = _starts(np.diff(self.code_start)[part])
            totals = run_totals(self.codes[_ranges(self.code_start, part)], start)
            wrong = np.flatnonzero(totals != self.code_size[part].astype(np.int64).prod(axis=1))
            if len(wrong):
                row = int(part[wrong[0]])
                height, width = self.code_size[row].tolist()
                raise SegmentationError(row, f"its run lengths do not add up to {height} x {width} pixels")


def run_totals(codes: NDArray[np.uint8], start: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the run lengths of every compressed code, -1 where a code is damaged.

    A code is a list of numbers x_0, x_1, ..., each in groups of six bits plus 48, lowest first: five bits of the
    number and one that says whether more follow; the last group's fifth bit is the sign. The run lengths are
    c_j = x_j for j < 3 and x_j + c_(j-2) from there on, so that x_j is part of every second run from c_j to the end.

    Args:
        codes: bytes of all codes.
        start: (n + 1,) bytes of code i are ``codes[start[i]:start[i + 1]]``.
    """
    count = len(start) - 1
    groups = codes.astype(np.int64) - 48
    code = np.repeat(np.arange(count), np.diff(start))
    more = (groups & 32) != 0
    filled = np.diff(start) > 0
    unfinished = np.zeros(count, dtype=np.bool_)
    unfinished[filled] = more[start[1:][filled] - 1]
    damaged = ~filled | unfinished
    damaged[code[(groups < 0) | (groups > 63)]] = True

    more[start[1:][filled] - 1] = False
    last = np.flatnonzero(~more)
    first = np.concatenate(([0], last + 1))[: len(last)]
    lengths = last - first + 1
    owner = code[first]
    damaged[owner[lengths > 7]] = True
    place = np.minimum(np.arange(len(groups)) - np.repeat(first, lengths), 7)
    shares = (groups & 31) << (5 * place)
    numbers = np.add.reduceat(shares, first) if len(first) else shares
    numbers -= np.where(groups[last] & 16, np.int64(1) << (5 * np.minimum(lengths, 7)), 0)

    amount = np.bincount(owner, minlength=count)
    begin = _starts(amount)
    position = np.arange(len(owner)) - np.repeat(begin[:-1], amount)
    uses = np.where(position == 0, 1, (np.repeat(amount, amount) - 1 - position) // 2 + 1)
    summed = _starts(numbers * uses)
    totals = summed[begin[1:]] - summed[begin[:-1]]
    totals[damaged] = -1
    return totals


def _starts(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(np.asarray(lengths, dtype=np.int64)))).astype(np.int64)


def _chain(starts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Offsets of one column after the other."""
    return _starts(np.concatenate([np.diff(start) for start in starts]))


def _picked(values: NDArray[Number], start: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Number]:
    """The values of some ranges one after the other, a few ranges at a time, to hold no position for every value."""
    lengths = np.diff(start)[rows]
    found = np.empty(int(lengths.sum()), dtype=values.dtype)
    place = 0
    for first in range(0, len(rows), PICKED):
        part = values[_ranges(start, rows[first : first + PICKED])]
        found[place : place + len(part)] = part
        place += len(part)
    return found


def _ranges(start: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """All positions of the ranges ``start[row]:start[row + 1]``, one after the other."""
    lengths = np.diff(start)[rows]
    first = np.repeat(start[:-1][rows] - (np.cumsum(lengths) - lengths), lengths)
    return first + np.arange(int(lengths.sum()), dtype=np.int64)


def _points(polygons: list[Any], polygon_start: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Coordinates of all polygons, and how many each has. Types are checked by the set, which is quick."""
    if set(map(type, polygons)) <= {list}:
        lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
        plain = set(map(type, chain.from_iterable(polygons))) <= {int, float}
        if plain and not ((lengths < 6) | (lengths % 2 > 0)).any():
            try:
                points = np.fromiter(chain.from_iterable(polygons), np.float64, int(lengths.sum()))
            except OverflowError:
                points = np.full(1, np.inf)
            if np.isfinite(points).all():
                return points, lengths
    wrong = next(number for number, polygon in enumerate(polygons) if not _is_polygon(polygon))
    row = int(np.searchsorted(polygon_start, wrong, side="right")) - 1
    raise SegmentationError(row, "a polygon is a list x, y, x, y, ... of at least three points, finite and in pixels")


def _is_polygon(given: Any) -> bool:
    return (
        isinstance(given, list)
        and len(given) >= 6
        and len(given) % 2 == 0
        and all(type(number) in (int, float) and abs(number) <= sys.float_info.max for number in given)
    )


def _code(given: dict[str, Any], row: int) -> tuple[bytes, list[int]]:
    size, counts = given.get("size"), given.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(s) is int and 0 < s < 2**31 for s in size):
        raise SegmentationError(row, "a run-length encoding needs a size [height, width]")
    if isinstance(counts, list):
        if not all(type(run) is int and 0 <= run < 2**31 for run in counts):
            raise SegmentationError(row, "run lengths are whole numbers from 0 on")
        from pycocotools import mask as codec

        counts = codec.frPyObjects({"size": size, "counts": counts}, size[0], size[1])["counts"]
    if isinstance(counts, str) and counts.isascii():
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes):
        raise SegmentationError(row, "a run-length encoding needs counts, a text or a list")
    return counts, size
