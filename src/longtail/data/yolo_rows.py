"""Lines of YOLO text files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longtail.data.assemble import Object, Problems, read_lines
from longtail.schema.errors import DataError

TOLERANCE = 1e-4  # of a picture's side: files round to a few digits


def keypoint_columns(path: Path, shape: Any) -> int:
    """Columns of keypoints behind every box, from ``kpt_shape: [number, 2 or 3]``; 0 without it.

    Raises:
        DataError: another shape.
    """
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
        raise DataError(f"{path}: kpt_shape is {shape!r}; give [number of keypoints, 2 or 3]")
    return int(shape[0] * shape[1])


class RowReader:
    """Turns lines into objects, and counts what it cannot keep.

    Args:
        num_classes: C; classes count from 0.
        keypoints: columns of keypoints that follow every box; 0 = none, then other lines than boxes are polygons.
    """

    def __init__(self, num_classes: int, keypoints: int = 0) -> None:
        self.num_classes = num_classes
        self.keypoints = keypoints
        self.with_keypoints = 0

    def read(self, path: Path, picture: int, height: int, width: int, problems: Problems) -> list[Object]:
        """The objects of one picture of the given size in pixels; malformed lines are added to ``problems``."""
        objects = []
        try:
            lines = read_lines(path)
        except DataError as error:
            problems.add(error)
            return []
        for number, line in enumerate(lines, start=1):
            if line:
                try:
                    objects.append(self._object(f"{path}, line {number}", line.split(), picture, height, width))
                except DataError as error:
                    problems.add(error)
        return objects

    def notes(self, source: str) -> list[str]:
        """What was left out."""
        if not self.with_keypoints:
            return []
        return [f"{source}: the keypoints of {self.with_keypoints} objects are not read; their boxes are"]

    def _object(self, where: str, words: Sequence[str], picture: int, height: int, width: int) -> Object:
        label = self._label(where, words[0])
        if self.keypoints:
            if len(words) != 5 + self.keypoints:
                raise DataError(
                    f"{where} has {len(words)} columns; with this kpt_shape it needs {5 + self.keypoints}: class, box "
                    "and keypoints"
                )
            self.with_keypoints += 1
            words = words[:5]
        values = [_fraction(where, word) for word in words[1:]]
        if len(values) == 4:
            return Object(picture, label, _box(where, values, height, width))
        if len(values) >= 6 and len(values) % 2 == 0:
            return _polygon(where, picture, label, values, height, width)
        raise DataError(
            f"{where} has {len(words)} columns; give `class cx cy w h`, or `class x y x y x y ...` with at least three "
            "points"
        )

    def _label(self, where: str, word: str) -> int:
        if not (word.isascii() and word.isdigit()):
            raise DataError(f"{where}: the class {word!r} is no whole number; classes count from 0")
        if int(word) >= self.num_classes:
            raise DataError(
                f"{where}: the class {word} is not among the {self.num_classes} names (0 to {self.num_classes - 1}); "
                "correct it or add its name"
            )
        return int(word)


def _fraction(where: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not -TOLERANCE <= value <= 1 + TOLERANCE:
        raise DataError(f"{where}: {word!r} is not in 0..1; coordinates are fractions of the picture's sides")
    return value


def _box(where: str, values: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    x, y, w, h = values
    if w <= 0 or h <= 0:
        raise DataError(f"{where}: the box of width {w:g} and height {h:g} has no area; correct or remove the line")
    return (x - w / 2) * width, (y - h / 2) * height, w * width, h * height


def _polygon(where: str, picture: int, label: int, values: Sequence[float], height: int, width: int) -> Object:
    x, y = [value * width for value in values[::2]], [value * height for value in values[1::2]]
    box = (min(x), min(y), max(x) - min(x), max(y) - min(y))
    if box[2] <= 0 or box[3] <= 0:
        raise DataError(f"{where}: the polygon has no area; correct or remove the line")
    points = [value for point in zip(x, y, strict=True) for value in point]
    return Object(picture, label, box, segmentation=[points])
