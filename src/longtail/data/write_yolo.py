"""Writes annotations as a YOLO set: ``data.yaml``, ``labels`` and a list of pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import yaml
from numpy.typing import NDArray

from longtail.data.assemble import Problems, inside
from longtail.data.masks import POLYGONS
from longtail.data.table import AnnotationTable


def yolo_files(table: AnnotationTable, *, split: str, masks: bool = True) -> Iterator[tuple[str, str]]:
    """Paths and texts of the files. An object whose mask is one polygon becomes a polygon, every other one a box; what
    reaches out of its picture ends at the edge. Crowd and ignored objects are left out. A picture without objects gets
    an empty file. The pictures belong into ``images`` beside ``labels``.

    Raises:
        DataError: pictures that would share a file, or unknown sizes; all of them.
    """
    stems = yolo_stems(table)
    kept = (~(table.iscrowd | table.ignore)).tolist()
    polygon = as_polygon(table, masks=masks).tolist()
    boxes = yolo_boxes(table).tolist()
    labels = table.label.tolist()
    for row, stem in enumerate(stems):
        size = np.array([table.widths[row], table.heights[row]], dtype=np.float64)
        rows = table.rows_of(row)
        lines = []
        for each in range(rows.start, rows.stop):
            if kept[each]:
                values = _points(table, each, size) if polygon[each] else boxes[each]
                lines.append(" ".join([str(labels[each]), *(f"{value:.10g}" for value in values)]) + "\n")
        yield f"labels/{stem}.txt", "".join(lines)
    yield f"{split}.txt", "".join(f"./images/{name}\n" for name in table.file_names)
    content = {"path": ".", split: f"{split}.txt", "names": dict(enumerate(table.category_names))}
    yield "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def yolo_notes(table: AnnotationTable, *, masks: bool = True) -> list[str]:
    """What a YOLO set does not hold, with counts."""
    notes = []
    left_out = table.iscrowd | table.ignore
    polygon = as_polygon(table, masks=masks)
    if table.iscrowd.any():
        notes.append(f"{int(table.iscrowd.sum())} crowd regions are left out")
    if (table.ignore & ~table.iscrowd).any():
        notes.append(f"{int((table.ignore & ~table.iscrowd).sum())} ignored (difficult) objects are left out")
    if table.masks is not None:
        lost = (table.masks.kind > 0) & ~polygon & ~left_out
        if lost.any():
            why = "are not wanted" if not masks else "have several polygons or are run lengths"
            notes.append(f"{int(lost.sum())} masks {why}; their boxes are kept")
        hull = np.abs(_hulls(table, polygon) - table.boxes_xywh[polygon]).max(axis=1, initial=0)
        if (hull > 0.5).any():
            notes.append(
                f"{int((hull > 0.5).sum())} boxes give way to the hull of their polygon, which differs by up to "
                f"{hull.max():.1f} pixels"
            )
    outside = _outside(table) & ~left_out
    if outside.any():
        notes.append(f"{int(outside.sum())} objects reach out of their picture and end at its edge")
    if table.negatives is not None:
        notes.append(f"the lists of absent and of incomplete classes of {table.num_images} images are left out")
    return notes


def as_polygon(table: AnnotationTable, *, masks: bool) -> NDArray[np.bool_]:
    """(A,) whether an object is written as a polygon."""
    if table.masks is None or not masks:
        return np.zeros(len(table.label), dtype=np.bool_)
    one = (table.masks.kind == POLYGONS) & (np.diff(table.masks.polygon_start) == 1)
    return np.asarray(one & ~(table.iscrowd | table.ignore), dtype=np.bool_)


def yolo_boxes(table: AnnotationTable) -> NDArray[np.float64]:
    """(A, 4) ``cx, cy, w, h`` in fractions of the picture's sides, cut off at its edges."""
    size = _sizes(table)
    first = np.clip(table.boxes_xywh[:, :2], 0, size)
    last = np.clip(table.boxes_xywh[:, :2] + table.boxes_xywh[:, 2:], 0, size)
    return np.concatenate(((first + last) / 2 / size, (last - first) / size), axis=1)


def yolo_stems(table: AnnotationTable) -> list[str]:
    """(I,) names of the text files without suffix.

    Raises:
        DataError: see :func:`yolo_files`.
    """
    problems = Problems(table.source)
    owner: dict[str, str] = {}
    stems = []
    for name, height, width in zip(table.file_names, table.heights.tolist(), table.widths.tolist(), strict=True):
        stem = name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name
        if not inside(name) or not name.isprintable() or name != name.strip():
            problems.add(f"the picture {name!r} has a name that a list of YOLO cannot hold; rename it")
        elif "images" in name.split("/")[:-1]:
            problems.add(f"the picture {name!r} lies in a folder `images`, which YOLO replaces by `labels`; rename it")
        if owner.setdefault(stem, name) != name:
            problems.add(f"the pictures {owner[stem]!r} and {name!r} would share {stem}.txt; rename one of them")
        if height < 1 or width < 1:
            problems.add(f"the size of the picture {name!r} is not known; give the pictures' folder (--images DIR)")
        stems.append(stem)
    if not problems.found:
        gone = np.flatnonzero((yolo_boxes(table)[:, 2:] <= 0).any(axis=1) & ~(table.iscrowd | table.ignore))
        for row in gone.tolist():
            problems.add(f"annotation {table.annotation_ids[row]!r} lies outside its picture; correct or remove it")
    problems.refuse()
    return stems


def _sizes(table: AnnotationTable) -> NDArray[np.float64]:
    return np.stack((table.widths, table.heights), axis=1)[table.image_index].astype(np.float64)


def _points(table: AnnotationTable, row: int, size: NDArray[np.float64]) -> list[float]:
    assert table.masks is not None
    points = table.masks.polygons(row)[0].reshape(-1, 2)
    fractions: list[float] = np.clip(points / size, 0, 1).ravel().tolist()
    return fractions


def _hulls(table: AnnotationTable, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    hulls = []
    for row in np.flatnonzero(chosen).tolist():
        assert table.masks is not None
        points = table.masks.polygons(row)[0].reshape(-1, 2)
        first = points.min(axis=0)
        hulls.append([*first, *(points.max(axis=0) - first)])
    return np.array(hulls, dtype=np.float64).reshape(-1, 4)


def _outside(table: AnnotationTable) -> NDArray[np.bool_]:
    first, last = table.boxes_xywh[:, :2], table.boxes_xywh[:, :2] + table.boxes_xywh[:, 2:]
    return np.asarray(((first < -1e-6) | (last > _sizes(table) + 1e-6)).any(axis=1), dtype=np.bool_)
