"""Defects in the entries of an annotation file, and what collects all findings."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTSIDE_PIXELS = 1.0
"""Boxes may stick out of their picture by so many pixels: rounding."""


@dataclass
class Found:
    """Cases of one rule: rows in the list they are from, their ids, and details of some of them."""

    rows: list[int] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    details: list[str] = field(default_factory=list)


class Findings(dict[str, Found]):
    """Cases by the code of their rule."""

    def add(self, code: str, row: int, id: Any, detail: str = "") -> None:
        """One case."""
        found = self.setdefault(code, Found())
        found.rows.append(row)
        found.ids.append(id)
        if detail and len(found.details) < 3:
            found.details.append(detail)

    def add_rows(
        self, code: str, rows: Iterable[int], ids: Sequence[Any], detail: Callable[[int], str] = lambda row: ""
    ) -> None:
        """Cases in some rows of a list with the given ids."""
        for row in rows:
            known = self.get(code)
            self.add(code, row, ids[row], detail(row) if known is None or len(known.details) < 3 else "")


@dataclass
class Content:
    """Entries of a file (those that are no objects left out), and where annotations point.

    Attributes:
        image_row, label: (A,) row of the image and of the category of every annotation, -1 = unknown.
        sizes: (I, 2) height and width, 0 = unknown.
        boxes: (A, 4) as in the file, NaN where unusable.
        sound: (A,) whether the box is finite and has an area.
        names: (I,) file names, None where there is none.
        rows: rows of the annotations in the file's own list.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    rows: list[int]
    image_row: NDArray[np.int64]
    label: NDArray[np.int64]
    sizes: NDArray[np.float64]
    boxes: NDArray[np.float64]
    sound: NDArray[np.bool_]
    names: list[str | None]

    @property
    def annotation_ids(self) -> list[Any]:
        """As in the file; without one, the place in it."""
        return [entry.get("id", row + 1) for entry, row in zip(self.annotations, self.rows, strict=True)]

    @property
    def image_ids(self) -> list[Any]:
        """As in the file."""
        return [entry.get("id") for entry in self.images]


def examine_entries(raw: dict[str, Any], findings: Findings) -> Content:
    """Everything that can be said from the file alone, masks apart."""
    lists: dict[str, list[Any]] = {}
    objects: dict[str, list[dict[str, Any]]] = {}
    for key in ("images", "annotations", "categories"):
        given = raw.get(key)
        if not isinstance(given, list):
            findings.add("key-missing", -1, key)
        elif not given:
            findings.add(f"{key}-none", -1, key)
        lists[key] = given if isinstance(given, list) else []
        objects[key] = [entry for entry in lists[key] if isinstance(entry, dict)]
        for row, entry in enumerate(lists[key]):
            if not isinstance(entry, dict):
                findings.add("entry-invalid", row, f"{key}[{row}]", repr(entry)[:60])
    images, annotations, categories = objects["images"], objects["annotations"], objects["categories"]
    content = Content(
        images=images,
        annotations=annotations,
        categories=categories,
        rows=[row for row, entry in enumerate(lists["annotations"]) if isinstance(entry, dict)],
        image_row=_point(annotations, "image_id", images),
        label=_point(annotations, "category_id", categories),
        sizes=_sizes(images, findings),
        boxes=np.full((len(annotations), 4), np.nan),
        sound=np.zeros(len(annotations), dtype=np.bool_),
        names=[file_name(image) for image in images],
    )
    _ids("image", content.image_ids, findings)
    _ids("category", [entry.get("id") for entry in categories], findings)
    _ids("annotation", content.annotation_ids, findings)
    _names(content, findings)
    _categories(content, findings)
    _lvis_lists(content, findings)
    ids = content.annotation_ids
    for key, column in (("image", content.image_row), ("category", content.label)):
        findings.add_rows(
            f"{key}-id-unknown",
            np.flatnonzero(column < 0).tolist(),
            ids,
            lambda row, key=key: f"{ids[row]!r}: {annotations[row].get(f'{key}_id')!r}",  # type: ignore[misc]
        )
    _boxes(content, findings)
    return content


def valid_id(value: Any) -> bool:
    """A whole number of 64 bits, or text."""
    return type(value) is str or (type(value) is int and -(2**63) <= value < 2**63)


def is_number(value: Any) -> bool:
    """A number that is not a truth value and fits a float."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


def file_name(image: dict[str, Any]) -> str | None:
    """As the loader finds it: ``file_name``, or the last two parts of ``coco_url``."""
    name = image.get("file_name")
    if name is None and isinstance(image.get("coco_url"), str):
        name = "/".join(image["coco_url"].split("/")[-2:])
    return name if isinstance(name, str) and name else None


def escapes(name: str) -> bool:
    """Whether a file name, taken literally, leads out of its folder."""
    return name.startswith("/") or posixpath.normpath(name).split("/")[0] == ".."


def _point(annotations: list[dict[str, Any]], key: str, entries: list[dict[str, Any]]) -> NDArray[np.int64]:
    rows = {entry["id"]: row for row, entry in enumerate(entries) if valid_id(entry.get("id"))}
    values = (entry.get(key) for entry in annotations)
    found = [rows.get(value, -1) if not isinstance(value, list | dict) else -1 for value in values]
    return np.array(found, dtype=np.int64)


def _ids(kind: str, ids: list[Any], findings: Findings) -> None:
    seen: set[Any] = set()
    for row, value in enumerate(ids):
        if not valid_id(value):
            findings.add(f"{kind}-id-invalid", row, value if value is not None else f"number {row}")
        elif value in seen:
            findings.add(f"{kind}-id-duplicate", row, value)
        else:
            seen.add(value)


def _sizes(images: list[dict[str, Any]], findings: Findings) -> NDArray[np.float64]:
    sizes = np.zeros((len(images), 2))
    for row, image in enumerate(images):
        given = [image.get("height", 0), image.get("width", 0)]
        if any(type(value) is not int or not 0 <= value < 2**31 for value in given):
            findings.add("image-size-invalid", row, image.get("id"), f"{image.get('id')!r}: {given}"[:80])
        elif 0 in given:
            findings.add("image-size-missing", row, image.get("id"))
        else:
            sizes[row] = given
    return sizes


def _names(content: Content, findings: Findings) -> None:
    ids = content.image_ids
    exact: set[str] = set()
    composed: dict[str, str] = {}
    folded: dict[str, str] = {}
    for row, name in enumerate(content.names):
        if name is None:
            findings.add("file-name-missing", row, ids[row])
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


def _categories(content: Content, findings: Findings) -> None:
    seen: set[str] = set()
    for row, category in enumerate(content.categories):
        if category.get("name") is None:
            findings.add("category-name-missing", row, category.get("id"))
        name = str(category.get("name", category.get("id")))
        if name in seen:
            findings.add("category-name-duplicate", row, category.get("id"), repr(name))
        seen.add(name)
    aside = np.array([bool(e.get("iscrowd")) or bool(e.get("ignore")) for e in content.annotations], dtype=np.bool_)
    known = content.label >= 0
    classes = len(content.categories)
    every = np.bincount(content.label[known], minlength=classes)
    single = np.bincount(content.label[known & ~aside], minlength=classes)
    ids = [category.get("id") for category in content.categories]

    def name_of(row: int) -> str:
        return repr(content.categories[row].get("name", ids[row]))

    if content.annotations:
        findings.add_rows("category-unused", np.flatnonzero(every == 0).tolist(), ids, name_of)
    findings.add_rows("category-crowd-only", np.flatnonzero((every > 0) & (single == 0)).tolist(), ids, name_of)


def _lvis_lists(content: Content, findings: Findings) -> None:
    known = {entry["id"] for entry in content.categories if valid_id(entry.get("id"))}
    for row, image in enumerate(content.images):
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            given = image.get(key, [])
            if not isinstance(given, list) or not all(valid_id(value) and value in known for value in given):
                findings.add("image-lists-invalid", row, image.get("id"), key)
                break


def _boxes(content: Content, findings: Findings) -> None:
    annotations, ids, boxes = content.annotations, content.annotation_ids, content.boxes
    shaped: list[int] = []
    for row, entry in enumerate(annotations):
        box = entry.get("bbox")
        if isinstance(box, list) and len(box) == 4:
            shaped.append(row)
        elif box is None:
            findings.add("bbox-missing", row, ids[row])
        else:
            code = "bbox-length" if isinstance(box, list) else "bbox-type"
            findings.add(code, row, ids[row], f"{ids[row]!r}: {box!r}"[:80])
    numbers = list(chain.from_iterable(annotations[row]["bbox"] for row in shaped))
    if not set(map(type, numbers)) <= {float} and not all(map(is_number, numbers)):
        wrong = {row for row in shaped if not all(map(is_number, annotations[row]["bbox"]))}
        findings.add_rows("bbox-type", sorted(wrong), ids, lambda row: f"{ids[row]!r}: {annotations[row]['bbox']}"[:80])
        shaped = [row for row in shaped if row not in wrong]
        numbers = list(chain.from_iterable(annotations[row]["bbox"] for row in shaped))
    boxes[shaped] = np.array(numbers, dtype=np.float64).reshape(-1, 4)

    def add(code: str, wrong: NDArray[Any]) -> None:
        findings.add_rows(code, np.flatnonzero(wrong).tolist(), ids, lambda row: f"{ids[row]!r}: {boxes[row].tolist()}")

    finite = np.isfinite(boxes).all(axis=1)
    usable = np.zeros(len(boxes), dtype=np.bool_)
    usable[shaped] = True
    add("bbox-nan", usable & ~finite)
    with np.errstate(invalid="ignore", over="ignore"):
        negative: NDArray[np.bool_] = np.asarray((boxes[:, 2:] < 0).any(axis=1))
        zero = (boxes[:, 2:] == 0).any(axis=1) & ~negative
        add("bbox-negative", finite & negative)
        add("bbox-zero", finite & zero)
        sound = finite & ~negative & ~zero
        content.sound[:] = sound
        sizes = content.sizes[content.image_row] if len(content.sizes) else np.zeros((len(boxes), 2))
        measured = sound & (content.image_row >= 0) & (sizes > 0).all(axis=1)
        far = boxes[:, :2] + boxes[:, 2:]
        outside = measured & ((boxes[:, :2] >= sizes[:, ::-1]) | (far <= 0)).any(axis=1)
        beyond = ((boxes[:, :2] < -OUTSIDE_PIXELS) | (far > sizes[:, ::-1] + OUTSIDE_PIXELS)).any(axis=1)
    add("bbox-outside", outside)
    add("bbox-partly-outside", measured & ~outside & beyond)
    content.sound &= ~outside
    rows = np.flatnonzero(sound & (content.image_row >= 0) & (content.label >= 0))
    keys = np.column_stack((content.image_row[rows], content.label[rows], boxes[rows]))
    order = np.lexsort((rows, *keys.T))
    again = (np.diff(keys[order], axis=0) == 0).all(axis=1)
    findings.add_rows("bbox-duplicate", np.sort(rows[order[1:][again]]).tolist(), ids)
    _areas(content, findings)


def _areas(content: Content, findings: Findings) -> None:
    ids = content.annotation_ids
    for row, entry in enumerate(content.annotations):
        area = entry.get("area")
        if area is not None and not (is_number(area) and 0 <= area < float("inf")):
            findings.add("area-invalid", row, ids[row], f"{ids[row]!r}: {area!r}"[:80])
