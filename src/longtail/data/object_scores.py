"""Scores of training objects in an Arrow file, and the tables that are made of chosen objects.

One row per object, by annotation: ``annotation_id`` and ``image_id`` (the ids as JSON text: ``17``, ``"a.jpg"``),
``category`` (its name), ``score`` of its own class and ``max_score`` of all classes, in 0..1.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.files import sync_folder
from longtail.data.table import AnnotationTable
from longtail.schema.errors import DataError


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """Scores of N objects of an annotation table.

    Attributes:
        rows: (N,) their rows in the table, ascending.
        own: (N,) float32, score of the object's class, in 0..1; 0 where the detector had no answer for the object.
        best: (N,) float32, highest score of all classes.
    """

    rows: NDArray[np.int64]
    own: NDArray[np.float32]
    best: NDArray[np.float32]

    def write(self, path: Path, table: AnnotationTable) -> None:
        """Writes the file, complete or not at all."""
        import pyarrow as pa

        rows = self.rows
        names = table.category_names
        columns = {
            "annotation_id": pa.array([json.dumps(each) for each in table.annotation_ids[rows].tolist()]),
            "image_id": pa.array([json.dumps(each) for each in table.image_ids[table.image_index[rows]].tolist()]),
            "category": pa.array([names[label] for label in table.label[rows].tolist()]),
            "score": pa.array(self.own, type=pa.float32()),
            "max_score": pa.array(self.best, type=pa.float32()),
        }
        content = pa.table(columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            os.close(handle)
            with pa.OSFile(draft, "wb") as file, pa.ipc.new_file(file, content.schema) as writer:
                writer.write_table(content)
            with open(draft, "rb") as written:
                os.fsync(written.fileno())
            os.chmod(draft, 0o644)
            os.replace(draft, path)
            sync_folder(path.parent)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    @classmethod
    def open(cls, path: Path, table: AnnotationTable) -> ObjectScores:
        """Reads the scores of a table's objects.

        Raises:
            DataError: the file is missing or damaged, or belongs to other annotations.
        """
        import pyarrow as pa

        if not path.is_file():
            raise DataError(f"there are no scores of training objects at {path}; a stage with passes_after writes them")
        try:
            with pa.OSFile(str(path), "rb") as file:
                content = pa.ipc.open_file(file).read_all()
            ids, images = content.column("annotation_id").to_pylist(), content.column("image_id").to_pylist()
            own = content.column("score").to_numpy().astype(np.float32)
            best = content.column("max_score").to_numpy().astype(np.float32)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DataError(f"{path} is no table of scores, or it is damaged ({error}); write it anew") from None
        known = annotation_keys(table)
        found = [known.get(key, -1) for key in zip(ids, images, strict=True)]
        wanted = scored_rows(table)
        if found != wanted.tolist():
            raise DataError(
                f"{path} has the scores of other objects than {table.source} ({len(found)} there, {len(wanted)} here); "
                "use the scores of a run on the same annotations"
            )
        return cls(wanted, own, best)


def annotation_keys(table: AnnotationTable) -> dict[tuple[str, str], int]:
    """Row of every annotation by its and its image's id, as JSON texts."""
    images = [json.dumps(each) for each in table.image_ids.tolist()]
    pairs = zip(table.annotation_ids.tolist(), table.image_index.tolist(), strict=True)
    return {(json.dumps(each), images[image]): row for row, (each, image) in enumerate(pairs)}


def scored_rows(table: AnnotationTable) -> NDArray[np.int64]:
    """Rows of the annotations that are scored: those that are no crowd, not ignored and have an area."""
    counted = ~(table.iscrowd | table.ignore) & (table.boxes_xywh[:, 2:] > 0).all(axis=1)
    return np.flatnonzero(counted).astype(np.int64)


def with_annotations(table: AnnotationTable, chosen: NDArray[np.bool_]) -> AnnotationTable:
    """The table with the annotations that ``chosen`` (A,) marks, and the images that have one."""
    rows = np.flatnonzero(chosen).astype(np.int64)
    counts = np.bincount(table.image_index[rows], minlength=table.num_images)
    kept = replace(
        table,
        annotation_ids=table.annotation_ids[rows],
        image_index=table.image_index[rows],
        label=table.label[rows],
        boxes_xywh=table.boxes_xywh[rows],
        area=table.area[rows],
        iscrowd=table.iscrowd[rows],
        ignore=table.ignore[rows],
        masks=None if table.masks is None else table.masks.take(rows),
        image_start=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
    )
    return kept.without_empty()
