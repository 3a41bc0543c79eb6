"""Reads and writes COCO and LVIS annotation files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.masks import MaskColumn
from longtail.data.table import AnnotationTable, LabelLists, id_array
from longtail.schema.errors import DataError

Entry = dict[str, Any]


def read_json(path: Path) -> Any:
    """The content of a JSON file, plain or gzipped.

    Raises:
        DataError: no such file, not JSON (with the position), or not gzip.
    """
    if not path.is_file():
        raise DataError(f"there is no annotation file {path}")
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        return json.loads(raw)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON at byte {error.pos} of {len(raw)}: {error.msg}; was it copied completely?"
        ) from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def read_coco(path: Path) -> dict[str, Any]:
    """The columns of an :class:`~longtail.data.table.AnnotationTable`.

    Crowd and ignored annotations are kept and flagged. A missing ``area`` becomes the box's, missing flags are False.
    LVIS files without ``file_name`` use the last two parts of ``coco_url``.

    Raises:
        DataError: the first thing that makes the file unusable, with file, id and remedy.
    """
    content = read_json(path)
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
    area = np.array(
        [
            a["area"] if a.get("area") is not None else box[2] * box[3]
            for a, box in zip(annotations, boxes, strict=True)
        ],
        dtype=np.float64,
    )
    federated = bool(images) and all(
        "neg_category_ids" in image and "not_exhaustive_category_ids" in image for image in images
    )
    counts = np.bincount(image_index, minlength=len(images))
    return {
        "source": str(path),
        "image_ids": id_array(image_ids),
        "file_names": [_file_name(path, image) for image in images],
        "heights": _sizes(path, images, "height"),
        "widths": _sizes(path, images, "width"),
        "category_ids": id_array(category_ids),
        "category_names": [str(category.get("name", category["id"])) for category in categories],
        "annotation_ids": id_array(annotation_ids),
        "image_index": image_index[order].astype(np.int32),
        "label": label[order].astype(np.int32),
        "boxes_xywh": boxes,
        "area": area,
        "iscrowd": np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=np.bool_),
        "ignore": np.array([bool(a.get("ignore", 0)) for a in annotations], dtype=np.bool_),
        "masks": _masks(path, annotations, annotation_ids),
        "negatives": _lists(path, images, "neg_category_ids", label_of) if federated else None,
        "not_exhaustive": _lists(path, images, "not_exhaustive_category_ids", label_of) if federated else None,
        "image_start": np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
    }


def write_coco(table: AnnotationTable) -> dict[str, Any]:
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


def _ids(path: Path, kind: str, entries: Sequence[Entry], *, optional: bool = False) -> list[int | str]:
    ids: list[int | str] = []
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {kind} number {row} is not an object; every {kind} is a JSON object")
        value = entry.get("id", row + 1 if optional else None)
        if not isinstance(value, int | str):
            raise DataError(f"{path}: {kind} number {row} has no id (a number or text); give every {kind} one")
        ids.append(value)
    if len(set(ids)) < len(ids):
        seen: set[int | str] = set()
        twice = next(value for value in ids if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        raise DataError(f"{path}: the {kind} id {twice!r} occurs more than once; ids must differ")
    return ids


def _order(ids: Sequence[int | str]) -> list[int]:
    """Ascending if all ids are numbers, as in the file otherwise."""
    rows = range(len(ids))
    return sorted(rows, key=lambda row: ids[row]) if all(isinstance(value, int) for value in ids) else list(rows)


def _look_up(
    path: Path, entries: Sequence[Entry], ids: Sequence[int | str], key: str, rows: dict[Any, int], where: str
) -> NDArray[np.int64]:
    found = [rows.get(entry.get(key), -1) if not isinstance(entry.get(key), list | dict) else -1 for entry in entries]
    column = np.array(found, dtype=np.int64)
    if len(column) and column.min() < 0:
        row = int(np.argmin(column))
        raise DataError(
            f"{path}: annotation {ids[row]!r} has {key} {entries[row].get(key)!r}, which is not among the {where}; "
            "correct it or remove the annotation"
        )
    return column


def _boxes(path: Path, entries: Sequence[Entry], ids: Sequence[int | str]) -> NDArray[np.float64]:
    try:
        boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(len(entries), 4)
    except (KeyError, TypeError, ValueError):
        row = next(row for row, entry in enumerate(entries) if not _is_box(entry.get("bbox")))
        raise DataError(
            f"{path}: annotation {ids[row]!r} has the bbox {entries[row].get('bbox')!r}; a bbox is [left, top, width, "
            "height] in pixels"
        ) from None
    _refuse(path, ids, boxes, ~np.isfinite(boxes), "is not finite")
    _refuse(path, ids, boxes, boxes[:, 2:] <= 0, "has no area")
    return boxes


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 4
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    )


def _refuse(
    path: Path, ids: Sequence[int | str], boxes: NDArray[np.float64], wrong: NDArray[np.bool_], what: str
) -> None:
    rows = np.flatnonzero(wrong.any(axis=1))
    if len(rows):
        row = int(rows[0])
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise DataError(
            f"{path}: annotation {ids[row]!r}: the bbox {boxes[row].tolist()} {what}{more}; correct or remove it"
        )


def _file_name(path: Path, image: Entry) -> str:
    name = image.get("file_name")
    if name is None and isinstance(image.get("coco_url"), str):
        name = "/".join(image["coco_url"].split("/")[-2:])
    if not isinstance(name, str) or not name:
        raise DataError(f"{path}: image {image['id']!r} has no file_name; give every image one")
    return name


def _sizes(path: Path, images: Sequence[Entry], key: str) -> NDArray[np.int32]:
    for image in images:
        value = image.get(key, 0)
        if not isinstance(value, int) or value < 0:
            raise DataError(f"{path}: image {image['id']!r} has the {key} {value!r}; give pixels or leave it out")
    return np.array([image.get(key, 0) for image in images], dtype=np.int32)


def _masks(path: Path, annotations: Sequence[Entry], ids: Sequence[int | str]) -> MaskColumn | None:
    segmentations = [annotation.get("segmentation") for annotation in annotations]
    if not any(segmentations):
        return None
    try:
        return MaskColumn.from_json(segmentations)
    except ValueError as error:
        row, _, text = str(error).partition(": ")
        raise DataError(f"{path}: annotation {ids[int(row)]!r}: {text}; correct or remove it") from None


def _lists(path: Path, images: Sequence[Entry], key: str, label_of: dict[Any, int]) -> LabelLists:
    get: Callable[[Any], int] = label_of.__getitem__
    labels: list[int] = []
    lengths: list[int] = []
    for image in images:
        try:
            own = [get(value) for value in image[key]]
        except (KeyError, TypeError):
            raise DataError(
                f"{path}: image {image['id']!r} has unknown category ids in {key}; list ids from categories"
            ) from None
        labels += own
        lengths.append(len(own))
    start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return LabelLists(start, np.array(labels, dtype=np.int32))
