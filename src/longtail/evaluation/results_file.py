"""Detections in the COCO and LVIS results format: a JSON list with one entry per detection."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as mask_codec

from longtail.data.files import write_text
from longtail.data.table import AnnotationTable
from longtail.schema.errors import DataError, UsageError

if TYPE_CHECKING:
    from longtail.evaluation.detections import DetectionTable

StrPath = str | os.PathLike[str]
Source = StrPath | Sequence[dict[str, Any]]


def read(source: Source, table: AnnotationTable, *, unknown: str = "error") -> dict[str, Any]:
    """The columns of a :class:`DetectionTable`.

    Masks may be compressed or uncompressed run lengths or polygons; boxes are taken from the masks where an entry
    has none. Either all entries have a mask or none has.

    Args:
        source: a file, plain or ``.gz``, or its content, or the ``predictions.json`` of ``longtail predict``, whose
            images are matched by file name; entries have ``image_id``, ``category_id``, ``score`` and ``bbox`` (x, y,
            width, height in pixels) or ``segmentation`` or both.
        table: the annotations whose image and category ids the entries use.
        unknown: ``"error"`` refuses ids that the annotations lack; ``"drop"`` leaves those detections out and counts
            them.

    Raises:
        UsageError: another value of ``unknown``.
        DataError: a file that is no list of such entries, unknown ids, or masks on some entries only.
    """
    if unknown not in ("error", "drop"):
        raise UsageError(f"unknown ids can be an 'error' or one can 'drop' them, not {unknown!r}")
    name, entries, file_names = _load(source)
    image_row: dict[Any, int] = {image_id: row for row, image_id in enumerate(table.image_ids.tolist())}
    if file_names is not None:
        row_of_name = {file_name: row for row, file_name in enumerate(table.file_names)}
        image_row = {image_id: row_of_name.get(file_name, -1) for image_id, file_name in file_names.items()}
    class_row = {category_id: row for row, category_id in enumerate(table.category_ids.tolist())}
    try:
        image = np.array([image_row.get(entry["image_id"], -1) for entry in entries], dtype=np.int64)
        label = np.array([class_row.get(entry["category_id"], -1) for entry in entries], dtype=np.int64)
        score = np.array([entry["score"] for entry in entries], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        row = _first_malformed(entries)
        raise DataError(
            f"{name}: entry {row} needs 'image_id', 'category_id' and a number 'score' ({error!r})"
        ) from error
    dropped = {
        "image not in the annotations": int((image < 0).sum()),
        "class not in the annotations": int(((label < 0) & (image >= 0)).sum()),
    }
    known = (image >= 0) & (label >= 0)
    if unknown == "error" and not known.all():
        raise DataError(_unknown_message(name, entries, image, label, table))
    if not known.all():
        entries = [entries[row] for row in np.flatnonzero(known).tolist()]
    image, label, score = image[known], label[known], score[known]
    rles = _masks(name, entries, image, table)
    return {
        "image_index": image,
        "label": label,
        "score": score,
        "boxes": _boxes(name, entries, rles),
        "rles": rles,
        "dropped": {reason: number for reason, number in dropped.items() if number},
    }


def entries(detections: DetectionTable, table: AnnotationTable, iou_type: str) -> Iterator[dict[str, Any]]:
    """Results entries with the file's own image and category ids and full precision.

    Args:
        detections: what to write.
        table: the annotations they belong to.
        iou_type: ``"bbox"`` writes boxes alone; ``"segm"`` writes masks alone, because evaluators take the size of
            a detection from its box as soon as there is one.

    Raises:
        UsageError: another ``iou_type``, or ``"segm"`` for detections without masks.
    """
    if iou_type not in ("bbox", "segm"):
        raise UsageError(f"iou_type must be 'bbox' or 'segm', got {iou_type!r}")
    detections.check_against(table)
    image_ids = table.image_ids.tolist()
    category_ids = table.category_ids.tolist()
    columns = zip(detections.image_index.tolist(), detections.label.tolist(), detections.score.tolist(), strict=True)
    if iou_type == "bbox":
        for (image, label, score), box in zip(columns, detections.boxes.tolist(), strict=True):
            yield {"image_id": image_ids[image], "category_id": category_ids[label], "bbox": box, "score": score}
        return
    if detections.rles is None:
        if len(detections):
            raise UsageError("these detections have no masks; write them with iou_type='bbox'")
        return
    for (image, label, score), rle in zip(columns, detections.rles, strict=True):
        counts = rle["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        mask = {"size": [int(side) for side in rle["size"]], "counts": text}
        yield {"image_id": image_ids[image], "category_id": category_ids[label], "segmentation": mask, "score": score}


def write(detections: DetectionTable, path: StrPath, table: AnnotationTable, iou_type: str) -> None:
    """Write :func:`entries` as JSON; a reader sees the old file or the complete new one."""
    lines = (json.dumps(entry) for entry in entries(detections, table, iou_type))
    write_text(Path(path), "[" + ",\n".join(lines) + "]\n")


def _load(source: Source) -> tuple[str, Sequence[dict[str, Any]], dict[Any, Any] | None]:
    """Name, entries, and the file names of their image ids where the file says them, as that of `predict` does."""
    if not isinstance(source, (str, os.PathLike)):
        return "results", source, None
    path = Path(source)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        loaded = json.loads(content)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such results file") from error
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); is the file complete?") from error
    if isinstance(loaded, dict) and _is_prediction(loaded):
        file_names = {image["id"]: image["file_name"] for image in loaded["images"]}
        return str(path), loaded["annotations"], file_names
    if not isinstance(loaded, list):
        raise DataError(f"{path}: a results file is a list with one entry per detection, this is a {_kind(loaded)}")
    return str(path), loaded, None


def _is_prediction(loaded: dict[str, Any]) -> bool:
    """Whether this is what `longtail predict` writes: results with scores, beside the images they are of."""
    images, found = loaded.get("images"), loaded.get("annotations")
    return (
        isinstance(images, list)
        and isinstance(found, list)
        and bool(images)
        and all(isinstance(image, dict) and {"id", "file_name"} <= image.keys() for image in images)
        and all(isinstance(entry, dict) and "score" in entry for entry in found)
    )


def _kind(loaded: object) -> str:
    if isinstance(loaded, dict) and "annotations" in loaded:
        return "file of annotations"
    return type(loaded).__name__


def _first_malformed(found: Sequence[Any]) -> int:
    for row, entry in enumerate(found):
        if not isinstance(entry, dict) or not {"image_id", "category_id", "score"} <= entry.keys():
            return row
        if isinstance(entry["score"], bool) or not isinstance(entry["score"], (int, float, np.floating)):
            return row
    return 0


def _unknown_message(name: str, found: Sequence[dict[str, Any]], image: Any, label: Any, table: AnnotationTable) -> str:
    if (image < 0).any():
        key, bad, what = "image_id", image < 0, "images"
    else:
        key, bad, what = "category_id", label < 0, "classes"
    example = found[int(np.flatnonzero(bad)[0])][key]
    return (
        f"{name}: {int(bad.sum())} detections are of {what} that {table.source} does not have, the first with "
        f"{key} {example!r}; evaluate against the annotations the detections were made for "
        "(LVIS v0.5 and v1 number their classes differently), or drop such detections explicitly"
    )


def _masks(
    name: str, found: Sequence[dict[str, Any]], image: Any, table: AnnotationTable
) -> list[dict[str, Any]] | None:
    with_mask = [entry.get("segmentation") is not None for entry in found]
    if not any(with_mask):
        return None
    if not all(with_mask):
        raise DataError(
            f"{name}: {sum(with_mask)} of {len(found)} entries have a mask, entry {with_mask.index(False)} has none; "
            "write either masks for all or boxes alone"
        )
    heights, widths, image_ids = table.heights.tolist(), table.widths.tolist(), table.image_ids.tolist()
    rles = []
    for row, (entry, index) in enumerate(zip(found, image.tolist(), strict=True)):
        size = (heights[index], widths[index])
        try:
            rle = _compressed(entry["segmentation"], size)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise DataError(f"{name}: the mask of entry {row} cannot be read ({error})") from error
        if tuple(rle["size"]) != size and min(size) > 0:
            raise DataError(
                f"{name}: the mask of entry {row} is {tuple(rle['size'])} high and wide, but image "
                f"{image_ids[index]!r} is {size}; masks must be in the frame of the original picture"
            )
        rles.append(rle)
    return rles


def _compressed(mask: Any, size: tuple[int, int]) -> dict[str, Any]:
    if isinstance(mask, list):
        merged: dict[str, Any] = mask_codec.merge(mask_codec.frPyObjects(mask, *size))
        return merged
    if isinstance(mask["counts"], list):
        packed: dict[str, Any] = mask_codec.frPyObjects(mask, *mask["size"])
        return packed
    counts = mask["counts"]
    return {"size": list(mask["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _boxes(name: str, found: Sequence[dict[str, Any]], rles: list[dict[str, Any]] | None) -> Any:
    if not found:
        return np.zeros((0, 4))
    has_box = [entry.get("bbox") is not None for entry in found]
    if not all(has_box) and rles is None:
        raise DataError(f"{name}: entry {has_box.index(False)} has neither 'bbox' nor 'segmentation'")
    try:
        if all(has_box):
            boxes = np.array([entry["bbox"] for entry in found], dtype=np.float64)
        else:
            boxes = np.asarray(mask_codec.toBbox(rles), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: a 'bbox' is four numbers: x, y, width, height ({error})") from error
    if boxes.shape != (len(found), 4):
        raise DataError(f"{name}: a 'bbox' is four numbers: x, y, width, height")
    return boxes
