"""Writes annotations in another format. What a format cannot hold is counted and said."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longtail.data.assemble import picture_size
from longtail.data.files import write_text
from longtail.data.formats import read_annotations, recognise, split_path
from longtail.data.table import AnnotationTable
from longtail.data.write_voc import voc_files, voc_notes
from longtail.data.write_yolo import yolo_files, yolo_notes
from longtail.schema.errors import UsageError

Target = Literal["coco", "yolo", "voc"]
OWN = {"yolo": {"data.yaml", "labels"}, "voc": {"Annotations", "ImageSets"}}


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: the file or folder.
        images: folder that the pictures of a COCO file lie in, if known; of a folder: where they belong.
        counts: images, annotations and classes that were read.
        notes: what the reader and the writer have to say, with counts.
    """

    path: Path
    images: Path | None
    counts: dict[str, int]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        images = None if self.images is None else str(self.images)
        return {"path": str(self.path), "images": images, "counts": self.counts, "notes": self.notes}


def convert(
    source: Path | str,
    out: Path | str,
    *,
    to: Target = "coco",
    split: str | None = None,
    images: Path | str | None = None,
    masks: bool = True,
    read_masks: bool = False,
    force: bool = False,
) -> Converted:
    """Reads annotations of any known format and writes them in another; pictures are not copied.

    Args:
        source: see :func:`longtail.data.formats.read_annotations`.
        out: a new JSON file, or a new folder.
        to: ``"coco"`` (LVIS where the images have the lists), ``"yolo"`` or ``"voc"``.
        split: which part of a VOC or YOLO set, and the name of the list that is written (``train`` otherwise).
        images: folder of the pictures, if the annotations do not say.
        masks: whether masks are written, where the other format has them.
        read_masks: whether the instance masks of a VOC folder are read, whose pictures are then those of the split in
            ``ImageSets/Segmentation``.
        force: whether something that was written before may be replaced; never the source.

    Raises:
        UsageError: ``out`` exists, or is the source.
        DataError: the source cannot be read, or not be written in the other format.
    """
    place, named = split_path(source)
    out = Path(out)
    refuse_existing(out, to, place, force=force)
    wanted = None if recognise(place) == "coco" else split
    table = read_annotations(source, images=images, split=wanted, masks=read_masks)
    written = write_as(with_sizes(table), out, to=to, split=split or named or "train", masks=masks)
    return replace(written, notes=[*table.notes, *written.notes])


def write_as(table: AnnotationTable, out: Path, *, to: Target, split: str = "train", masks: bool = True) -> Converted:
    """Writes a table; a folder appears when it is complete."""
    counts = {"images": table.num_images, "annotations": len(table.label), "classes": table.num_classes}
    if to == "coco":
        if out.suffix == ".gz":
            raise UsageError(f"annotations are written as plain JSON; give a name that ends in .json, not {out}")
        content = (table if masks else replace(table, masks=None)).to_coco()
        write_text(out, json.dumps(content, ensure_ascii=False, allow_nan=False))
        notes = []
        if not masks and table.masks is not None:
            notes.append(f"{int((table.masks.kind > 0).sum())} masks are left out, as asked for")
        return Converted(out, _folder(table), counts, notes)
    if to == "yolo":
        write_folder(yolo_files(table, split=split, masks=masks), out)
        return Converted(out, out / "images", counts, yolo_notes(table, masks=masks))
    write_folder(voc_files(table, split=split), out)
    return Converted(out, out / "JPEGImages", counts, voc_notes(table))


def refuse_existing(out: Path, to: Target, source: Path, *, force: bool) -> None:
    """Refuses to write where something is, except over an earlier result if ``force``.

    Raises:
        UsageError: with what is in the way.
    """
    target, origin = out.resolve(), source.resolve()
    if target == origin or target.is_relative_to(origin) or origin.is_relative_to(target):
        raise UsageError(f"{out} is, holds or lies in what is read ({source}), which is never changed; choose another")
    if not out.exists() or (out.is_dir() and not any(out.iterdir()) and to != "coco"):
        return
    if not force:
        raise UsageError(f"{out} exists; choose another name, or replace it with --force")
    if out.is_dir() == (to == "coco"):
        kind = "folder" if out.is_dir() else "file"
        raise UsageError(f"{out} is a {kind}, which --force does not replace; choose another")
    if to != "coco":
        foreign = [each.name for each in sorted(out.iterdir()) if each.name not in OWN[to] and each.suffix != ".txt"]
        if foreign:
            raise UsageError(f"{out} holds more than an earlier result ({foreign[0]}); choose another, or empty it")


def write_folder(files: Iterator[tuple[str, str]], out: Path) -> None:
    """Writes files below a new folder beside ``out`` and moves it into place; what lay at ``out`` is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for name, text in files:
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        draft.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def with_sizes(table: AnnotationTable) -> AnnotationTable:
    """Sizes that the annotations do not state are read from the pictures, where their folder is known."""
    folder = _folder(table)
    unknown = np.flatnonzero((table.heights < 1) | (table.widths < 1)).tolist()
    if folder is None or not unknown:
        return table
    heights, widths = table.heights.copy(), table.widths.copy()
    for row in unknown:
        heights[row], widths[row] = picture_size(folder / table.file_names[row])
    return replace(table, heights=heights, widths=widths)


def _folder(table: AnnotationTable) -> Path | None:
    if len(table.sources) != 1 or table.sources[0].images is None:
        return None
    return Path(table.sources[0].images)
