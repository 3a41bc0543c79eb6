"""COCO and LVIS annotation files: to columns and back."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longtail.data.check_entries import Places, examine_entries
from longtail.data.check_masks import examine_masks, misfits
from longtail.data.entries import Content, Entry, read_content
from longtail.data.findings import Findings
from longtail.data.index import Columns, keep_index, open_index, stamp_of
from longtail.data.mask_entries import without
from longtail.data.report import listed, refusal
from longtail.data.table import LabelLists, id_array
from longtail.schema.errors import DataError

if TYPE_CHECKING:
    from longtail.data.table import AnnotationTable


def read_coco(path: Path) -> Columns:
    """The columns of an :class:`~longtail.data.table.AnnotationTable`, and what is noteworthy about the file.

    A file is read piece by piece and examined by the rules of :mod:`longtail.data.rules`; files of some size leave an
    index behind, from which they are opened at once the next time (:mod:`longtail.data.index`).

    Crowd and ignored annotations are kept and flagged. A missing ``area`` becomes the box's, missing flags are False,
    missing annotation ids are counted from 1, a class without a name is called by its id. LVIS files without
    ``file_name`` use the last two parts of ``coco_url``. Segmentations that break a rule are left out; whoever needs
    masks must refuse the table (its findings say so).

    Raises:
        DataError: the first rule that makes the file unusable, with file, ids and remedy, and how many more there are.
    """
    stored = open_index(path)
    if stored is not None:
        return stored
    with _no_collection():
        stamp = stamp_of(path)
        findings = Findings()
        content, digest = read_content(path, findings)
        places = None if content is None else examine_entries(content, findings)
        if content is not None and places is not None:
            examine_masks(content, places, findings)
        found = listed(findings)
        broken = [finding for finding in found if finding.severity == "error" and not finding.readable]
        if broken or content is None or places is None:
            raise DataError(refusal(path, broken))
        columns = Columns(arrays_of(path, content, places), tuple(found), digest)
        del content, places, findings
    return keep_index(path, columns, stamp)


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


def arrays_of(path: Path, content: Content, places: Places) -> dict[str, Any]:
    """The columns, annotations in the order of their images and classes in the order of their ids, where these are
    numbers."""
    images, categories = content.images, content.categories
    category_ids = [entry["id"] for entry in categories]
    by_number = all(isinstance(value, int) for value in category_ids)
    new_label = sorted(range(len(categories)), key=category_ids.__getitem__) if by_number else range(len(categories))
    categories = [categories[row] for row in new_label]
    label_of = {entry["id"]: label for label, entry in enumerate(categories)}
    label = np.argsort(np.array(list(new_label), dtype=np.int64))[places.label] if categories else places.label
    order = np.argsort(places.image_row, kind="stable")
    sorted_already = bool((np.diff(order) == 1).all())
    masks = content.masks
    if masks is not None:
        wrong = misfits(masks, places)
        masks = without(masks, wrong) if len(wrong) else masks
        masks = masks if sorted_already else masks.take(order)
    boxes = content.boxes[order]
    area = content.area[order]
    with np.errstate(over="ignore"):
        area = np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area)
    counts = np.bincount(places.image_row, minlength=len(images))
    federated = bool(images) and all(
        "neg_category_ids" in image and "not_exhaustive_category_ids" in image for image in images
    )
    return {
        "source": str(path),
        "image_ids": id_array(content.image_ids),
        "file_names": places.names,
        "heights": places.sizes[:, 0].astype(np.int32),
        "widths": places.sizes[:, 1].astype(np.int32),
        "category_ids": id_array([entry["id"] for entry in categories]),
        "category_names": [str(entry.get("name", entry["id"])) for entry in categories],
        "annotation_ids": id_array([content.annotation_ids[row] for row in order.tolist()]),
        "image_index": places.image_row[order].astype(np.int32),
        "label": label[order].astype(np.int32),
        "boxes_xywh": boxes,
        "area": area,
        "iscrowd": content.iscrowd[order],
        "ignore": content.ignore[order],
        "masks": masks,
        "negatives": lists_of(images, "neg_category_ids", label_of) if federated else None,
        "not_exhaustive": lists_of(images, "not_exhaustive_category_ids", label_of) if federated else None,
        "image_start": np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
    }


def lists_of(images: list[Entry], key: str, label_of: dict[Any, int]) -> LabelLists:
    """The labels listed under a key of every image."""
    lengths = [len(image[key]) for image in images]
    labels = [label_of[value] for image in images for value in image[key]]
    return LabelLists(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), np.array(labels, dtype=np.int32))


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
