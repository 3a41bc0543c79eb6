"""Reads and writes COCO and LVIS annotation files. Everything a file is refused for stands in the lower half."""

from __future__ import annotations

import gc
import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.masks import RLE, MaskColumn, SegmentationError
from longtail.data.table import AnnotationTable, LabelLists, id_array
from longtail.schema.errors import DataError

Entry = dict[str, Any]
Ids = Sequence[int | str]


def read_json(path: Path) -> Any:
    """The content of a JSON file, plain or gzipped.

    Raises:
        DataError: no such file, not JSON (with the position in the unpacked text), or not gzip.
    """
    if not path.is_file():
        raise DataError(f"there is no annotation file {path}")
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        return json.loads(raw)
    except json.JSONDecodeError as error:
        place = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        raise DataError(
            f"{path} is not valid JSON at byte {place} of {len(raw)}: {error.msg}; was it copied completely?"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text at byte {error.start} of {len(raw)}; save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; was it copied completely?") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not an annotation file: {error}") from None


def read_coco(path: Path) -> dict[str, Any]:
    """The columns of an :class:`~longtail.data.table.AnnotationTable`.

    Crowd and ignored annotations are kept and flagged. A missing ``area`` becomes the box's, missing flags are False,
    missing annotation ids are counted from 1. LVIS files without ``file_name`` use the last two parts of ``coco_url``.

    Raises:
        DataError: the first thing that makes the file unusable, with file, id and remedy.
    """
    with _no_collection():
        return _columns(path, read_json(path))


def coco_content(table: AnnotationTable) -> dict[str, Any]:
    """A COCO or LVIS dictionary of a table, with original ids."""
    images: list[Entry] = []
    ids, category_ids = table.image_ids.tolist(), table.category_ids.tolist()
    for row, image_id in enumerate(ids):
        entry = {
            "id": image_id,
            "file_name": table.file_names[row],
            "height": int(table.heights[row]),
            "width": int(table.widths[row]),
        }
        for key, lists in (
            ("neg_category_ids", table.negatives),
            ("not_exhaustive_category_ids", table.not_exhaustive),
        ):
            if lists is not None:
                entry[key] = [category_ids[label] for label in lists.of(row).tolist()]
        images.append(entry)
    annotations: list[Entry] = []
    for row, annotation_id in enumerate(table.annotation_ids.tolist()):
        entry = {
            "id": annotation_id,
            "image_id": ids[int(table.image_index[row])],
            "category_id": category_ids[int(table.label[row])],
            "bbox": table.boxes_xywh[row].tolist(),
            "area": float(table.area[row]),
        }
        if table.iscrowd[row] or not table.federated:
            entry["iscrowd"] = int(table.iscrowd[row])
        if table.ignore[row]:
            entry["ignore"] = 1
        if table.masks is not None and table.masks.kind[row]:
            entry["segmentation"] = table.masks.to_json(row)
        annotations.append(entry)
    categories = [
        {"id": category_id, "name": name} for category_id, name in zip(category_ids, table.category_names, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pauses the collector of reference cycles: it would walk the millions of objects of a large file over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _columns(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{path} has no list {key!r}; it needs images, annotations and categories")
    images, annotations, categories = content["images"], content["annotations"], content["categories"]

    image_ids = _ids(path, "image", images)
    category_ids = _ids(path, "category", categories)
    category_order = _order(category_ids)
    categories = [categories[row] for row in category_order]
    category_ids = [category_ids[row] for row in category_order]
    annotation_ids = _ids(path, "annotation", annotations, optional=True)

    image_row = {value: row for row, value in enumerate(image_ids)}
    label_of = {value: label for label, value in enumerate(category_ids)}
    image_index = _look_up(path, annotations, annotation_ids, "image_id", image_row, "images")
    label = _look_up(path, annotations, annotation_ids, "category_id", label_of, "categories")
    order = np.argsort(image_index, kind="stable")
    annotations = [annotations[row] for row in order.tolist()]
    annotation_ids = [annotation_ids[row] for row in order.tolist()]
    boxes = _boxes(path, annotations, annotation_ids)
    heights, widths = _sizes(path, images, "height"), _sizes(path, images, "width")
    image_index = image_index[order].astype(np.int32)
    federated = bool(images) and all(
        "neg_category_ids" in image and "not_exhaustive_category_ids" in image for image in images
    )
    counts = np.bincount(image_index, minlength=len(images))
    return {
        "source": str(path),
        "image_ids": id_array(image_ids),
        "file_names": [_file_name(path, image) for image in images],
        "heights": heights,
        "widths": widths,
        "category_ids": id_array(category_ids),
        "category_names": _names(path, categories),
        "annotation_ids": id_array(annotation_ids),
        "image_index": image_index,
        "label": label[order].astype(np.int32),
        "boxes_xywh": boxes,
        "area": _areas(path, annotations, annotation_ids, boxes),
        "iscrowd": _flags(path, annotations, annotation_ids, "iscrowd"),
        "ignore": _flags(path, annotations, annotation_ids, "ignore"),
        "masks": _masks(path, annotations, annotation_ids, np.stack((heights, widths), axis=1)[image_index]),
        "negatives": _lists(path, images, "neg_category_ids", label_of) if federated else None,
        "not_exhaustive": _lists(path, images, "not_exhaustive_category_ids", label_of) if federated else None,
        "image_start": np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
    }


def require_pictures(table: AnnotationTable, folder: Path) -> None:
    """Looks whether every picture of a table is there, one listing per folder.

    Raises:
        DataError: the folder or pictures are missing; with their number, the first one and its id.
    """
    if not folder.is_dir():
        raise DataError(f"there is no image folder {folder}")
    listed: dict[str, set[str]] = {}
    lacking = []
    for row, name in enumerate(table.file_names):
        parent, _, last = name.rpartition("/")
        if parent not in listed:
            try:
                listed[parent] = set(os.listdir(folder / parent))
            except (OSError, ValueError):
                listed[parent] = set()
        if last not in listed[parent] and not (folder / name).is_file():
            lacking.append(row)
    if lacking:
        first = table.image_ids[lacking[:1]].tolist()[0]
        others = f", and {len(lacking) - 1} more of {table.num_images} are missing" if len(lacking) > 1 else ""
        raise DataError(
            f"there is no picture {folder / table.file_names[lacking[0]]} (image {first!r} of {table.source}){others}; "
            "give the folder that the file names start from"
        )


def _ids(path: Path, kind: str, entries: Sequence[Entry], *, optional: bool = False) -> list[int | str]:
    strange = next((row for row, entry in enumerate(entries) if not isinstance(entry, dict)), None)
    if strange is not None:
        raise DataError(f"{path}: {kind} number {strange} is not an object; every {kind} is a JSON object")
    ids: list[Any] = [entry.get("id", row + 1 if optional else None) for row, entry in enumerate(entries)]
    strange = next((row for row, value in enumerate(ids) if type(value) is not int and type(value) is not str), None)
    if strange is not None:
        raise DataError(f"{path}: {kind} number {strange} has no id (a whole number or text); give every {kind} one")
    if len(set(ids)) < len(ids):
        seen: set[Any] = set()
        twice = next(value for value in ids if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        raise DataError(f"{path}: the {kind} id {twice!r} occurs more than once; ids must differ")
    return ids


def _names(path: Path, categories: Sequence[Entry]) -> list[str]:
    for category in categories:
        if not isinstance(category.get("name"), str):
            raise DataError(f"{path}: category {category['id']!r} has no name; give every category one")
    return [category["name"] for category in categories]


def _order(ids: Ids) -> list[int]:
    """Ascending if all ids are numbers, as in the file otherwise."""
    rows = range(len(ids))
    return sorted(rows, key=lambda row: ids[row]) if all(isinstance(value, int) for value in ids) else list(rows)


def _look_up(
    path: Path, entries: Sequence[Entry], ids: Ids, key: str, rows: dict[Any, int], where: str
) -> NDArray[np.int64]:
    values = [entry.get(key) for entry in entries]
    found = (rows.get(value, -1) if isinstance(value, int | str | float) else -1 for value in values)
    column = np.fromiter(found, np.int64, len(values))
    if len(column) and column.min() < 0:
        row = int(np.argmin(column))
        raise DataError(
            f"{path}: annotation {ids[row]!r} has {key} {values[row]!r}, which is not among the {where}; "
            "correct it or remove the annotation"
        )
    return column


def _boxes(path: Path, entries: Sequence[Entry], ids: Ids) -> NDArray[np.float64]:
    boxes = [entry.get("bbox") for entry in entries]
    column = None
    if set(map(type, boxes)) <= {list} and set(map(len, boxes)) <= {4}:  # type: ignore[arg-type]
        column = _numbers(list(chain.from_iterable(boxes)))  # type: ignore[arg-type]
    if column is None:
        row = next(row for row, box in enumerate(boxes) if not _is_box(box))
        raise DataError(
            f"{path}: annotation {ids[row]!r} has the bbox {boxes[row]!r}; a bbox is four finite numbers, left, top, "
            "width and height in pixels; correct it or remove the annotation"
        )
    column = column.reshape(-1, 4)
    flat = np.flatnonzero((column[:, 2:] <= 0).any(axis=1))
    if len(flat):
        row = int(flat[0])
        more = f" (as have {len(flat) - 1} more)" if len(flat) > 1 else ""
        raise DataError(
            f"{path}: annotation {ids[row]!r} has the bbox {boxes[row]!r}, which has no area{more}; width and height "
            "must be above 0; correct it or remove the annotation"
        )
    return column


def _areas(path: Path, entries: Sequence[Entry], ids: Ids, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    areas = [entry.get("area") for entry in entries]
    lacking = [row for row, value in enumerate(areas) if value is None]
    for row in lacking:
        areas[row] = float(boxes[row, 2] * boxes[row, 3])
    column = _numbers(areas)
    if column is None or (column < 0).any():
        row = next(row for row, value in enumerate(areas) if not _is_number(value) or value < 0)  # type: ignore[operator]
        raise DataError(
            f"{path}: annotation {ids[row]!r} has the area {areas[row]!r}; an area is a number of pixels; correct it, "
            "or leave it out for the box's"
        )
    return column


def _flags(path: Path, entries: Sequence[Entry], ids: Ids, key: str) -> NDArray[np.bool_]:
    values = [entry.get(key) for entry in entries]
    if not (set(map(type, values)) <= {int, float, bool, type(None)} and set(values) <= {0, 1, None}):
        allowed = (int, float, bool, type(None))
        row = next(row for row, value in enumerate(values) if type(value) not in allowed or value not in (0, 1, None))
        raise DataError(f"{path}: annotation {ids[row]!r} has {key} {values[row]!r}; write 0 or 1, or leave it out")
    return np.array(values, dtype=np.bool_)


def _numbers(values: list[Any]) -> NDArray[np.float64] | None:
    """A column, or None if anything is not a finite number. Types are checked by their set, which is quick."""
    if not set(map(type, values)) <= {int, float}:
        return None
    try:
        column = np.array(values, dtype=np.float64)
    except OverflowError:
        return None
    return column if bool(np.isfinite(column).all()) else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _file_name(path: Path, image: Entry) -> str:
    name = image.get("file_name")
    if name is None and isinstance(image.get("coco_url"), str):
        name = "/".join(image["coco_url"].split("/")[-2:])
    if not isinstance(name, str) or not name:
        raise DataError(f"{path}: image {image['id']!r} has no file_name; give every image one")
    return name


def _sizes(path: Path, images: Sequence[Entry], key: str) -> NDArray[np.int32]:
    values = [image.get(key, 0) for image in images]
    for image, value in zip(images, values, strict=True):
        if type(value) is not int or not 0 <= value < 2**31:
            raise DataError(f"{path}: image {image['id']!r} has the {key} {value!r}; give whole pixels or leave it out")
    return np.array(values, dtype=np.int32)


def _masks(path: Path, annotations: Sequence[Entry], ids: Ids, sizes: NDArray[np.int32]) -> MaskColumn | None:
    segmentations = [annotation.get("segmentation") for annotation in annotations]
    if not any(segmentations):
        return None
    try:
        column = MaskColumn.from_json(segmentations)
        known = (column.kind == RLE) & (sizes > 0).all(axis=1)
        wrong = np.flatnonzero(known & (column.code_size != sizes).any(axis=1))
        if len(wrong):
            row = int(wrong[0])
            own, picture = column.code_size[row].tolist(), sizes[row].tolist()
            raise SegmentationError(
                row, f"its mask is {own[0]} x {own[1]} (height x width), its picture {picture[0]} x {picture[1]}"
            )
    except SegmentationError as error:
        raise DataError(
            f"{path}: annotation {ids[error.row]!r}: {error.text}; correct or remove the segmentation"
        ) from None
    return column


def _lists(path: Path, images: Sequence[Entry], key: str, label_of: dict[Any, int]) -> LabelLists:
    labels: list[int] = []
    lengths: list[int] = []
    for image in images:
        try:
            own = [label_of[value] for value in image[key]]
        except (KeyError, TypeError):
            raise DataError(
                f"{path}: image {image['id']!r} has unknown category ids in {key}; list ids from categories"
            ) from None
        labels += own
        lengths.append(len(own))
    start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return LabelLists(start, np.array(labels, dtype=np.int32))
