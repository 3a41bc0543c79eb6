"""The entries of an annotation file in columns, taken in batch by batch as the file streams past."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.findings import Findings, is_number
from longtail.data.mask_entries import MaskEntries
from longtail.data.masks import MaskColumn
from longtail.data.stream import Batch, Stream, StreamError

KEYS = ("images", "annotations", "categories")
Entry = dict[str, Any]


@dataclass
class Content:
    """What a file holds; entries that are no objects are left out.

    Attributes:
        images, categories: entries.
        rows: (A,) places of the annotations in the file's own list.
        annotation_ids: (A,) as in the file; without one, the place in it, from 1.
        image_values, category_values: (A,) ``image_id`` and ``category_id`` as in the file.
        boxes: (A, 4) as in the file, NaN where unusable.
        shaped: (A,) whether the box is a list of four numbers.
        area: (A,) as in the file, NaN where there is none or it is unusable.
        iscrowd, ignore: (A,) flags.
        masks: segmentations, unusable ones left out; None where they were not wanted, or no annotation has one.
        bounds: (A, 4) left, top, width, height of the masks, NaN where there is none.
        missing: lists that the file lacks or has as something else.
    """

    images: list[Entry]
    categories: list[Entry]
    rows: NDArray[np.int64]
    annotation_ids: list[Any]
    image_values: list[Any]
    category_values: list[Any]
    boxes: NDArray[np.float64]
    shaped: NDArray[np.bool_]
    area: NDArray[np.float64]
    iscrowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    masks: MaskColumn | None
    bounds: NDArray[np.float64]
    missing: list[str]

    @property
    def image_ids(self) -> list[Any]:
        """As in the file."""
        return [entry.get("id") for entry in self.images]


class EntryReader:
    """Collects batches of entries.

    Args:
        findings: gets what is wrong with single values of annotations.
        masks: whether segmentations are wanted.
    """

    def __init__(self, findings: Findings, *, masks: bool) -> None:
        self.findings = findings
        self.seen: dict[str, int] = {}
        self.lists: dict[str, list[Entry]] = {"images": [], "categories": []}
        self.rows: list[NDArray[np.int64]] = []
        self.ids: list[Any] = []
        self.image_values: list[Any] = []
        self.category_values: list[Any] = []
        self.boxes: list[NDArray[np.float64]] = []
        self.shaped: list[NDArray[np.bool_]] = []
        self.area: list[NDArray[np.float64]] = []
        self.flags: dict[str, list[NDArray[np.bool_]]] = {"iscrowd": [], "ignore": []}
        self.masks = MaskEntries(findings) if masks else None

    def take(self, batch: Batch) -> None:
        """The next entries of a list; batches of other lists are passed over."""
        if batch.key not in KEYS or batch.entries is None:
            return
        if batch.first == 0 and batch.key in self.seen:
            self.findings.add("key-repeated", -1, batch.key)
        self.seen[batch.key] = self.seen.get(batch.key, 0) + len(batch.entries)
        objects, places = batch.entries, np.arange(batch.first, batch.first + len(batch.entries))
        if set(map(type, objects)) - {dict}:
            for place, entry in zip(places.tolist(), objects, strict=True):
                if not isinstance(entry, dict):
                    self.findings.add(
                        "entry-invalid", place, f"{batch.key}[{place}]", f"{batch.key}[{place}]: {entry!r}"[:80]
                    )
            kept = np.array([isinstance(entry, dict) for entry in objects])
            objects, places = [entry for entry in objects if isinstance(entry, dict)], places[kept]
        if batch.key == "annotations":
            self._annotations(objects, places)
        else:
            self.lists[batch.key] += objects

    def finish(self) -> Content:
        """All of it."""
        return Content(
            images=self.lists["images"],
            categories=self.lists["categories"],
            rows=np.concatenate([np.zeros(0, np.int64), *self.rows]),
            annotation_ids=self.ids,
            image_values=self.image_values,
            category_values=self.category_values,
            boxes=np.concatenate([np.zeros((0, 4)), *self.boxes]),
            shaped=np.concatenate([np.zeros(0, np.bool_), *self.shaped]),
            area=np.concatenate([np.zeros(0), *self.area]),
            iscrowd=np.concatenate([np.zeros(0, np.bool_), *self.flags["iscrowd"]]),
            ignore=np.concatenate([np.zeros(0, np.bool_), *self.flags["ignore"]]),
            masks=None if self.masks is None else self.masks.column(),
            bounds=np.full((len(self.ids), 4), np.nan) if self.masks is None else self.masks.bounds(),
            missing=[key for key in KEYS if key not in self.seen],
        )

    def _annotations(self, entries: list[Entry], places: NDArray[np.int64]) -> None:
        base = len(self.ids)
        ids = [entry.get("id", place + 1) for entry, place in zip(entries, places.tolist(), strict=True)]
        self.rows.append(places)
        self.ids += ids
        self.image_values += [entry.get("image_id") for entry in entries]
        self.category_values += [entry.get("category_id") for entry in entries]
        self._boxes(entries, ids, base)
        self._areas(entries, ids, base)
        for key in self.flags:
            self._flag(key, entries, ids, base)
        if self.masks is not None:
            self.masks.add([entry.get("segmentation") for entry in entries], ids)

    def _boxes(self, entries: list[Entry], ids: list[Any], base: int) -> None:
        given = [entry.get("bbox") for entry in entries]
        column = None
        if set(map(type, given)) <= {list} and set(map(len, given)) <= {4}:  # type: ignore[arg-type]
            column = numbers(list(chain.from_iterable(given)))  # type: ignore[arg-type]
        if column is not None:
            self.boxes.append(column.reshape(-1, 4))
            self.shaped.append(np.ones(len(given), np.bool_))
            return
        boxes, shaped = np.full((len(given), 4), np.nan), np.zeros(len(given), np.bool_)
        for row, box in enumerate(given):
            if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
                boxes[row], shaped[row] = box, True
            elif box is None:
                self.findings.add("bbox-missing", base + row, ids[row], f"{ids[row]!r}")
            else:
                code = "bbox-length" if isinstance(box, list) and len(box) != 4 else "bbox-type"
                self.findings.add(code, base + row, ids[row], f"{ids[row]!r}: {box!r}"[:80])
        self.boxes.append(boxes)
        self.shaped.append(shaped)

    def _areas(self, entries: list[Entry], ids: list[Any], base: int) -> None:
        given = [entry.get("area") for entry in entries]
        column = numbers(given)
        if column is None or not (np.isfinite(column) & (column >= 0)).all():
            column = np.full(len(given), np.nan)
            for row, area in enumerate(given):
                if area is not None and is_number(area) and 0 <= area < float("inf"):
                    column[row] = area
                elif area is not None:
                    self.findings.add("area-invalid", base + row, ids[row], f"{ids[row]!r}: {area!r}"[:80])
        self.area.append(column)

    def _flag(self, key: str, entries: list[Entry], ids: list[Any], base: int) -> None:
        given = [entry.get(key) for entry in entries]
        allowed = (int, float, bool, type(None))
        if not (set(map(type, given)) <= set(allowed) and set(given) <= {0, 1, None}):
            for row, value in enumerate(given):
                if type(value) not in allowed or value not in (0, 1, None):
                    detail = f"{ids[row]!r}: {key} {value!r}"[:80]
                    self.findings.add("flag-invalid", base + row, ids[row], detail)
                    given[row] = 0
        self.flags[key].append(np.array(given, dtype=np.bool_))


def read_content(path: Path, findings: Findings, *, masks: bool = True) -> tuple[Content | None, str]:
    """Reads a file piece by piece.

    Returns:
        Its content, and the SHA-256 of its bytes; None, and a finding, if it cannot be read.
    """
    stream, reader = Stream(path), EntryReader(findings, masks=masks)
    try:
        for batch in stream.batches():
            reader.take(batch)
    except StreamError as error:
        findings.clear()
        findings.add(error.code, -1, str(path), error.text if error.code.startswith(("json", "file-un")) else "")
        return None, ""
    for token in stream.tokens:
        findings.add("json-nan", -1, token)
    return reader.finish(), stream.sha256


def content_of(raw: dict[str, Any], findings: Findings, *, masks: bool = True) -> Content:
    """The same of a file's object that is in memory."""
    reader = EntryReader(findings, masks=masks)
    for key, value in raw.items():
        reader.take(Batch(key, 0, value if isinstance(value, list) else None))
    return reader.finish()


def numbers(values: Iterable[Any]) -> NDArray[np.float64] | None:
    """A column, or None if anything is not a number that fits a float. Types are checked by their set, which is
    quick."""
    values = list(values)
    if not set(map(type, values)) <= {int, float}:
        return None
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return None
