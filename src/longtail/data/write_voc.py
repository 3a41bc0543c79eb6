"""Writes annotations as a Pascal VOC folder: ``Annotations`` and a list in ``ImageSets/Main``."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

import numpy as np

from longtail.data.assemble import Problems, inside
from longtail.data.table import AnnotationTable


def voc_files(table: AnnotationTable, *, split: str) -> Iterator[tuple[str, str]]:
    """Paths and texts of the files. Boxes are rounded to whole pixels, counted from 1, both corners included, and end
    at the picture's edge. Crowd and ignored objects become ``difficult``.

    Raises:
        DataError: pictures that would share a file, unknown sizes, or names XML cannot hold; all of them.
    """
    stems = voc_stems(table)
    heights, widths = table.heights.tolist(), table.widths.tolist()
    difficult = (table.iscrowd | table.ignore).tolist()
    labels = table.label.tolist()
    corners = voc_corners(table).tolist()
    for row, stem in enumerate(stems):
        rows = table.rows_of(row)
        objects = "".join(
            _object(table.category_names[labels[each]], corners[each], difficult[each])
            for each in range(rows.start, rows.stop)
        )
        yield (
            f"Annotations/{stem}.xml",
            f"<annotation>\n  <filename>{escape(table.file_names[row])}</filename>\n"
            f"  <size><width>{widths[row]}</width><height>{heights[row]}</height><depth>3</depth></size>\n"
            f"{objects}</annotation>\n",
        )
    yield f"ImageSets/Main/{split}.txt", "".join(f"{stem}\n" for stem in stems)


def voc_notes(table: AnnotationTable) -> list[str]:
    """What a VOC folder does not hold, with counts."""
    notes = []
    exact = np.concatenate((table.boxes_xywh[:, :2] + 1, table.boxes_xywh[:, :2] + table.boxes_xywh[:, 2:]), axis=1)
    moved = np.abs(voc_corners(table) - exact).max(axis=1, initial=0)
    rounded, clipped = int((moved > 1e-6).sum()), int((moved > 1).sum())
    if rounded:
        notes.append(f"{rounded} boxes are rounded to whole pixels")
    if clipped:
        notes.append(f"{clipped} of them reach out of their picture, or are thinner than a pixel, and are moved to it")
    if table.masks is not None:
        notes.append(f"{int((table.masks.kind > 0).sum())} masks are left out; their boxes are kept")
    if table.iscrowd.any():
        notes.append(f"{int(table.iscrowd.sum())} crowd regions become difficult objects")
    if table.negatives is not None:
        notes.append(f"the lists of absent and of incomplete classes of {table.num_images} images are left out")
    unused = table.num_classes - len(np.unique(table.label))
    if unused:
        notes.append(f"{unused} classes without objects are left out, for there is no list of classes")
    return notes


def voc_corners(table: AnnotationTable) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """(A, 4) ``xmin, ymin, xmax, ymax`` as VOC counts them."""
    boxes = table.boxes_xywh
    limit = np.stack((table.widths, table.heights), axis=1)[table.image_index].astype(np.int64)
    first = np.clip(np.rint(boxes[:, :2]).astype(np.int64) + 1, 1, limit)
    last = np.clip(np.rint(boxes[:, :2] + boxes[:, 2:]).astype(np.int64), first, limit)
    return np.concatenate((first, last), axis=1)


def voc_stems(table: AnnotationTable) -> list[str]:
    """(I,) names of the annotation files without suffix.

    Raises:
        DataError: see :func:`voc_files`.
    """
    problems = Problems(table.source)
    owner: dict[str, str] = {}
    stems = []
    for name, height, width in zip(table.file_names, table.heights.tolist(), table.widths.tolist(), strict=True):
        stem = name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name
        if not inside(name) or not name.isprintable() or any(letter.isspace() for letter in stem):
            problems.add(f"the picture {name!r} has a name that a list of VOC cannot hold; rename it")
        if owner.setdefault(stem, name) != name:
            problems.add(f"the pictures {owner[stem]!r} and {name!r} would share {stem}.xml; rename one of them")
        if height < 1 or width < 1:
            problems.add(f"the size of the picture {name!r} is not known; give the pictures' folder (--images DIR)")
        stems.append(stem)
    for name in table.category_names:
        if not name.strip() or name != name.strip() or not name.isprintable():
            problems.add(f"the class name {name!r} is blank, has blanks at an end, or control characters; rename it")
    problems.refuse()
    return stems


def _object(name: str, corners: list[int], difficult: bool) -> str:
    left, top, right, bottom = corners
    return (
        f"  <object><name>{escape(name)}</name><difficult>{int(difficult)}</difficult>"
        f"<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>\n"
    )
