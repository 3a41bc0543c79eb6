"""What the readers of folders have in common: problems named together, columns from objects, sizes of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.data.masks import MaskColumn
from longtail.data.table import Source
from longtail.schema.errors import DataError

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
SHOWN = 10  # problems an error names


@dataclass(frozen=True)
class Picture:
    """A picture: path below the image folder, height and width in pixels."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Object:
    """An object: row of its picture, label, box ``x, y, width, height`` in pixels, whether evaluation ignores it, and a
    segmentation in one of COCO's forms if it has one."""

    picture: int
    label: int
    box: tuple[float, float, float, float]
    ignore: bool = False
    segmentation: Any = None


class Problems:
    """Collects what makes a source unusable, so that one error names all of it."""

    def __init__(self, source: Path | str) -> None:
        self.source = source
        self.found: list[str] = []

    def add(self, problem: DataError | str) -> None:
        """Remembers a problem: a sentence with file, place and remedy."""
        self.found.append(str(problem))

    def refuse(self) -> None:
        """Ends the reading if there was any problem.

        Raises:
            DataError: names them, at most ten, and says how many more there are.
        """
        if not self.found:
            return
        more = f"; and {len(self.found) - SHOWN} more" if len(self.found) > SHOWN else ""
        head = f"{self.source} has {len(self.found)} problems: " if len(self.found) > 1 else ""
        raise DataError(head + "; ".join(self.found[:SHOWN]) + more)


def columns(
    source: Path | str,
    images: Path,
    pictures: Sequence[Picture],
    objects: Sequence[Object],
    names: Sequence[str],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The columns of an :class:`~longtail.data.table.AnnotationTable`; ids of all kinds count from 1.

    Args:
        source: for messages.
        images: folder the pictures' names start from.
        pictures: all of them, those without objects included.
        objects: in ascending order of their pictures.
        names: class names in the order of the labels.
        notes: what the reader has to say.
    """
    image_index = np.array([each.picture for each in objects], dtype=np.int32)
    boxes = np.array([each.box for each in objects], dtype=np.float64).reshape(len(objects), 4)
    segmentations = [each.segmentation for each in objects]
    counts = np.bincount(image_index, minlength=len(pictures))
    return {
        "source": str(source),
        "image_ids": np.arange(1, len(pictures) + 1, dtype=np.int64),
        "file_names": [picture.name for picture in pictures],
        "heights": np.array([picture.height for picture in pictures], dtype=np.int32),
        "widths": np.array([picture.width for picture in pictures], dtype=np.int32),
        "category_ids": np.arange(1, len(names) + 1, dtype=np.int64),
        "category_names": list(names),
        "annotation_ids": np.arange(1, len(objects) + 1, dtype=np.int64),
        "image_index": image_index,
        "label": np.array([each.label for each in objects], dtype=np.int32),
        "boxes_xywh": boxes,
        "area": _areas(boxes, segmentations),
        "iscrowd": np.zeros(len(objects), dtype=np.bool_),
        "ignore": np.array([each.ignore for each in objects], dtype=np.bool_),
        "masks": MaskColumn.from_json(segmentations) if any(segmentations) else None,
        "negatives": None,
        "not_exhaustive": None,
        "image_start": np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        "sources": (Source(str(source), str(images)),),
        "notes": tuple(notes),
    }


def polygon_area(polygon: NDArray[np.float64]) -> float:
    """Square pixels inside ``x, y, x, y, ...`` (the shoelace formula)."""
    x, y = polygon[::2], polygon[1::2]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _areas(boxes: NDArray[np.float64], segmentations: Sequence[Any]) -> NDArray[np.float64]:
    from pycocotools import mask as codec

    area: NDArray[np.float64] = boxes[:, 2] * boxes[:, 3]
    for row, given in enumerate(segmentations):
        if isinstance(given, list):
            area[row] = sum(polygon_area(np.array(polygon)) for polygon in given)
        elif given is not None:
            area[row] = float(codec.area(given))
    return area


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width from the picture's header, after its EXIF rotation; the pixels are not decoded.

    Raises:
        DataError: no such picture, or none at all.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            sideways = Image.Image.getexif(picture).get(ORIENTATION) in SIDEWAYS  # that of PNG files would decode them
    except FileNotFoundError:
        raise DataError(f"there is no picture {path}; copy it there, or remove it from the annotations") from None
    except Exception as error:  # decoders fail in many ways
        raise DataError(f"{path} cannot be read as a picture: {error}; replace or remove it") from None
    return (width, height) if sideways else (height, width)


def inside(name: str) -> bool:
    """Whether a path with forward slashes stays inside the folder it starts from."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without the blanks at their ends.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}; save it as UTF-8") from None
