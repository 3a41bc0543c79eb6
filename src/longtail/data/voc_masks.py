"""Instance masks of a VOC folder: pictures whose pixels are instance numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.schema.errors import DataError

VOID = 255  # outlines and what nobody marked
MIN_IOU = 0.25  # between the box of an instance and that of its object; void outlines make instances smaller

Box = tuple[float, float, float, float]


class InstanceMasks:
    """Matches the instances of ``SegmentationObject`` with annotated objects, and counts what does not match.

    Args:
        folder: ``SegmentationObject``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = 0
        self.objects = 0
        self.pictures_without = 0
        self.objects_without = 0
        self.instances_without = 0

    def of(self, stem: str, height: int, width: int, boxes: Sequence[Box]) -> list[Any]:
        """A run-length encoding, or None, for every object of a picture.

        Pairs of instance and object are made in descending order of the IoU of their boxes, down to 0.25.

        Args:
            stem: name of the picture without suffix.
            height, width: of the picture, in pixels.
            boxes: ``x, y, width, height`` of its objects, in pixels.

        Raises:
            DataError: the mask file cannot be read or has another size than the picture.
        """
        from pycocotools import mask as codec

        self.pictures += 1
        self.objects += len(boxes)
        path = self.folder / f"{stem}.png"
        if not path.is_file():
            self.pictures_without += 1
            self.objects_without += len(boxes)
            return [None] * len(boxes)
        numbers = _read(path)
        if numbers.shape != (height, width):
            raise DataError(
                f"{path} is {numbers.shape[0]} x {numbers.shape[1]} (height x width), its picture {height} x {width}; "
                "replace one of them"
            )
        instances = [number for number in np.unique(numbers).tolist() if number not in (0, VOID)]
        pairs = match([_box(numbers == number) for number in instances], boxes)
        found: list[Any] = [None] * len(boxes)
        for instance, row in pairs:
            mask = np.asfortranarray(numbers == instances[instance], dtype=np.uint8)
            found[row] = codec.encode(mask)
        self.objects_without += len(boxes) - len(pairs)
        self.instances_without += len(instances) - len(pairs)
        return found

    def notes(self) -> list[str]:
        """What lacks a partner."""
        lines = []
        if self.pictures_without:
            lines.append(f"{self.pictures_without} of {self.pictures} pictures have no file in {self.folder}")
        if self.objects_without:
            lines.append(f"{self.objects_without} of {self.objects} objects have no mask in {self.folder}")
        if self.instances_without:
            lines.append(f"{self.instances_without} instances in {self.folder} belong to no object and are left out")
        return lines


def match(instances: Sequence[Box], objects: Sequence[Box]) -> list[tuple[int, int]]:
    """Pairs (instance, object), each used at most once, best IoU first."""
    scored = [
        (-_iou(instance, box), first, second)
        for first, instance in enumerate(instances)
        for second, box in enumerate(objects)
    ]
    pairs: list[tuple[int, int]] = []
    for loss, first, second in sorted(scored):
        if -loss < MIN_IOU:
            break
        if all(first != one and second != other for one, other in pairs):
            pairs.append((first, second))
    return pairs


def _read(path: Path) -> NDArray[np.int64]:
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L"):
                raise DataError(f"{path} has the mode {picture.mode}; instance numbers are a palette or grey picture")
            return np.asarray(picture).astype(np.int64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}; replace or remove it") from None


def _box(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def _iou(first: Box, second: Box) -> float:
    wide = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    high = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    shared = max(0.0, wide) * max(0.0, high)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)
