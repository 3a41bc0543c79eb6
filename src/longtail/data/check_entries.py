"""Rules on the entries of an annotation file that need more than one value: ids, names, classes, places of boxes."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.entries import KEYS, Content
from longtail.data.findings import Findings, escapes, file_name, valid_id

OUTSIDE_PIXELS = 1.0
"""Boxes may stick out of their picture by so many pixels: rounding."""


@dataclass
class Places:
    """Where annotations point, and which of their boxes can be used.

    Attributes:
        image_row, label: (A,) row of the image and of the category of every annotation, -1 = unknown.
        sizes: (I, 2) height and width, 0 = unknown.
        names: (I,) file names, None where there is none.
        sound: (A,) whether the box is finite, has an area and is not wholly outside its picture.
    """

    image_row: NDArray[np.int64]
    label: NDArray[np.int64]
    sizes: NDArray[np.float64]
    names: list[str | None]
    sound: NDArray[np.bool_]

    def sizes_of_annotations(self) -> NDArray[np.float64]:
        """(A, 2) height and width of the picture of every annotation, 0 = unknown."""
        sizes = np.concatenate((self.sizes, np.zeros((1, 2))))  # the last one is that of unknown pictures
        return sizes[self.image_row]


def examine_entries(content: Content, findings: Findings) -> Places:
    """Everything that can be said from the file alone, masks apart."""
    for key, count in zip(
        KEYS, (len(content.images), len(content.annotation_ids), len(content.categories)), strict=True
    ):
        if key in content.missing:
            findings.add("key-missing", -1, key)
        elif not count:
            findings.add(f"{key}-none", -1, key)
    places = Places(
        image_row=_point(content.image_values, content.image_ids),
        label=_point(content.category_values, [entry.get("id") for entry in content.categories]),
        sizes=_sizes(content, findings),
        names=[file_name(image) for image in content.images],
        sound=np.zeros(len(content.annotation_ids), dtype=np.bool_),
    )
    _ids("image", content.image_ids, findings)
    _ids("category", [entry.get("id") for entry in content.categories], findings)
    _ids("annotation", content.annotation_ids, findings)
    _names(content, places, findings)
    _categories(content, places, findings)
    _lvis_lists(content, findings)
    ids = content.annotation_ids
    for key, column, values in (
        ("image", places.image_row, content.image_values),
        ("category", places.label, content.category_values),
    ):
        for row in np.flatnonzero(column < 0).tolist():
            findings.add(f"{key}-id-unknown", row, ids[row], f"{ids[row]!r}: {key}_id {values[row]!r}"[:80])
    _boxes(content, places, findings)
    return places


def _point(values: list[Any], ids: list[Any]) -> NDArray[np.int64]:
    rows = {identity: row for row, identity in enumerate(ids) if valid_id(identity)}
    if set(map(type, values)) <= {int, str}:
        return np.array([rows.get(value, -1) for value in values], dtype=np.int64)
    known = (rows.get(value, -1) if isinstance(value, int | str | float) else -1 for value in values)
    return np.array(list(known), dtype=np.int64)


def _ids(kind: str, ids: list[Any], findings: Findings) -> None:
    if (
        set(map(type, ids)) <= {int}
        and len(set(ids)) == len(ids)
        and all(map(valid_id, (min(ids or [0]), max(ids or [0]))))
    ):
        return
    seen: set[Any] = set()
    for row, value in enumerate(ids):
        if not valid_id(value):
            findings.add(f"{kind}-id-invalid", row, value if value is not None else f"number {row}")
        elif value in seen:
            findings.add(f"{kind}-id-duplicate", row, value)
        else:
            seen.add(value)


def _sizes(content: Content, findings: Findings) -> NDArray[np.float64]:
    sizes = np.zeros((len(content.images), 2))
    for row, image in enumerate(content.images):
        given = [image.get("height", 0), image.get("width", 0)]
        if any(type(value) is not int or not 0 <= value < 2**31 for value in given):
            findings.add("image-size-invalid", row, image.get("id"), f"{image.get('id')!r}: {given}"[:80])
        elif 0 in given:
            findings.add("image-size-missing", row, image.get("id"))
        else:
            sizes[row] = given
    return sizes


def _names(content: Content, places: Places, findings: Findings) -> None:
    ids = content.image_ids
    exact: set[str] = set()
    composed: dict[str, str] = {}
    folded: dict[str, str] = {}
    for row, name in enumerate(places.names):
        if name is None:
            findings.add("file-name-missing", row, ids[row], f"{ids[row]!r}")
            continue
        if escapes(name):
            findings.add("file-name-escapes", row, ids[row], repr(name))
        if name in exact:
            findings.add("file-name-duplicate", row, ids[row], repr(name))
            continue
        exact.add(name)
        form = unicodedata.normalize("NFC", name)
        if composed.setdefault(form, name) != name:
            findings.add("file-name-unicode", row, ids[row], repr(name))
        elif folded.setdefault(form.casefold(), name) != name:
            findings.add("file-name-case", row, ids[row], f"{folded[form.casefold()]!r} and {name!r}")


def _categories(content: Content, places: Places, findings: Findings) -> None:
    seen: set[str] = set()
    for row, category in enumerate(content.categories):
        if category.get("name") is None:
            findings.add("category-name-missing", row, category.get("id"))
        name = str(category.get("name", category.get("id")))
        if name in seen:
            findings.add("category-name-duplicate", row, category.get("id"), repr(name))
        seen.add(name)
    known = places.label >= 0
    classes = len(content.categories)
    every = np.bincount(places.label[known], minlength=classes)
    single = np.bincount(places.label[known & ~(content.iscrowd | content.ignore)], minlength=classes)
    ids = [category.get("id") for category in content.categories]

    def name_of(row: int) -> str:
        return repr(content.categories[row].get("name", ids[row]))

    if content.annotation_ids:
        findings.add_rows("category-unused", np.flatnonzero(every == 0).tolist(), ids, name_of)
    findings.add_rows("category-crowd-only", np.flatnonzero((every > 0) & (single == 0)).tolist(), ids, name_of)


def _lvis_lists(content: Content, findings: Findings) -> None:
    known = {entry["id"] for entry in content.categories if valid_id(entry.get("id"))}
    for row, image in enumerate(content.images):
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            given = image.get(key, [])
            if not isinstance(given, list) or not all(valid_id(value) and value in known for value in given):
                findings.add("image-lists-invalid", row, image.get("id"), f"{image.get('id')!r}: {key}")
                break


def _boxes(content: Content, places: Places, findings: Findings) -> None:
    ids, boxes = content.annotation_ids, content.boxes

    def add(code: str, wrong: NDArray[Any]) -> None:
        findings.add_rows(code, np.flatnonzero(wrong).tolist(), ids, lambda row: f"{ids[row]!r}: {boxes[row].tolist()}")

    finite = np.isfinite(boxes).all(axis=1)
    add("bbox-nan", content.shaped & ~finite)
    with np.errstate(invalid="ignore", over="ignore"):
        negative: NDArray[np.bool_] = np.asarray((boxes[:, 2:] < 0).any(axis=1))
        zero = (boxes[:, 2:] == 0).any(axis=1) & ~negative
        add("bbox-negative", finite & negative)
        add("bbox-zero", finite & zero)
        sound = finite & ~negative & ~zero
        sizes = places.sizes_of_annotations()
        measured = sound & (places.image_row >= 0) & (sizes > 0).all(axis=1)
        far = boxes[:, :2] + boxes[:, 2:]
        outside = measured & ((boxes[:, :2] >= sizes[:, ::-1]) | (far <= 0)).any(axis=1)
        beyond = ((boxes[:, :2] < -OUTSIDE_PIXELS) | (far > sizes[:, ::-1] + OUTSIDE_PIXELS)).any(axis=1)
    add("bbox-outside", outside)
    add("bbox-partly-outside", measured & ~outside & beyond)
    places.sound[:] = sound & ~outside
    rows = np.flatnonzero(sound & (places.image_row >= 0) & (places.label >= 0))
    keys = np.column_stack((places.image_row[rows], places.label[rows], boxes[rows]))
    order = np.lexsort((rows, *keys.T))
    again = (np.diff(keys[order], axis=0) == 0).all(axis=1)
    findings.add_rows("bbox-duplicate", np.sort(rows[order[1:][again]]).tolist(), ids)
