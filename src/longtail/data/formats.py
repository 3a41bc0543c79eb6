"""Reads annotations of any format the package knows, by looking at what a path holds."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from longtail.data.assemble import Problems
from longtail.data.coco import require_pictures
from longtail.data.image_folder import is_image_folder, split_folder, sub_folders
from longtail.data.table import AnnotationTable, Source
from longtail.data.voc import splits_of
from longtail.data.yolo import open_yolo
from longtail.schema.errors import DataError, UsageError

Format = Literal["coco", "voc", "yolo", "folder"]
KNOWN = (
    "a COCO or LVIS file (.json, .json.gz), a VOC folder (with Annotations), a YOLO data.yaml or folder (with "
    "data.yaml, or images, labels and classes.txt), or a folder of pictures by class"
)


def read_annotations(
    path: Path | str,
    *,
    images: Path | str | None = None,
    split: str | None = None,
    prefer: str | None = None,
    masks: bool = False,
) -> AnnotationTable:
    """Reads COCO, LVIS, VOC or YOLO annotations, or a folder of pictures by class.

    Args:
        path: a COCO or LVIS file, a VOC folder, or a YOLO file or folder. A split of a VOC or YOLO set can be named
            behind a colon, as in ``VOC2007:trainval``.
        images: the picture folder; where given, every picture must be in it. None = the format's own, if it has one.
        split: the split of a VOC or YOLO set or of a folder of pictures; None = the one named in ``path``, or
            ``prefer``, or (VOC) every file, or (YOLO) the only one.
        prefer: the split of sets that have it, where none is named. A VOC folder that has splits, but not this one, is
            then not read, lest training and validation share pictures.
        masks: whether the instance masks of a VOC folder are read; the other formats hold them with the boxes.

    Raises:
        UsageError: a split of a file that has none.
        DataError: nothing of a known format, or unusable, with place and remedy.
    """
    place, named = split_path(path)
    split = split or named
    match recognise(place):
        case "coco":
            if split is not None:
                raise UsageError(f"{place} is one file without splits; leave the split {split!r} away")
            table = AnnotationTable.from_coco(place, images=images)
            return replace(table, sources=(Source(str(place), None if images is None else str(images)),))
        case "voc":
            if split is None and prefer is not None:
                split = _preferred(place, prefer)
            table = AnnotationTable.from_voc(place, split=split, images=images, masks=masks)
        case "yolo":
            if split is None and prefer in open_yolo(place).splits:
                split = prefer
            table = AnnotationTable.from_yolo(place, split=split, images=images)
        case "folder":
            return AnnotationTable.from_image_folder(split_folder(place, split, prefer))
    if images is not None:
        require_pictures(table, Path(images))
    return table


def split_path(path: Path | str) -> tuple[Path, str | None]:
    """The path and the split of ``VOC2007:trainval``; a path that exists as it is has no split."""
    head, colon, split = str(path).rpartition(":")
    if colon and split and not os.path.exists(path) and os.path.exists(head):
        return Path(head), split
    return Path(path), None


def recognise(path: Path) -> Format:
    """The format of what lies at a path.

    Raises:
        DataError: nothing is there, or nothing of a known format.
    """
    if os.path.isdir(path):
        if (path / "Annotations").is_dir():
            return "voc"
        if any(path.glob("*.yaml")) or any(path.glob("*.yml")) or (path / "labels").is_dir():
            return "yolo"
        hint = _hint(path)
        if not hint and (is_image_folder(path) or any(is_image_folder(folder) for folder in sub_folders(path))):
            return "folder"
        raise DataError(f"{path} is no annotation folder; give {KNOWN}{hint}")
    if not os.path.isfile(path):
        raise DataError(f"there is no annotation file {path}, nor a folder of that name")
    if path.suffix.lower() in (".yaml", ".yml"):
        return "yolo"
    if path.suffix.lower() in (".json", ".gz"):
        return "coco"
    if path.suffix.lower() == ".xml":
        raise DataError(f"{path} is one file of a VOC folder; give the folder above its Annotations")
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] in (b"{", b"[") or start[:2] == b"\x1f\x8b":
        return "coco"
    raise DataError(f"{path} is no annotation file; give {KNOWN}")


def require_own_pictures(table: AnnotationTable) -> None:
    """Looks whether every picture is in its source's folder.

    Raises:
        DataError: pictures are missing, or a source has no folder; all sources are named.
    """
    problems = Problems(table.source)
    for number, source in enumerate(table.sources):
        if source.images is None:
            problems.add(f"{source.name} does not say where its pictures are; give their folder (--images DIR)")
            continue
        try:
            require_pictures(part_of(table, number), Path(source.images))
        except DataError as error:
            problems.add(error)
    problems.refuse()


def part_of(table: AnnotationTable, source: int) -> AnnotationTable:
    """The images of one source."""
    if table.source_of_image is None:
        return table
    return table.select(np.flatnonzero(table.source_of_image == source).astype(np.int64))


@contextmanager
def coco_file(path: Path | str, *, images: Path | str | None = None) -> Iterator[tuple[Path, Path | None]]:
    """Any annotations as a COCO file for the time of the block: the file itself, or a temporary one.

    Yields:
        The file, and its picture folder if known.
    """
    place, split = split_path(path)
    if split is None and (not place.exists() or (place.is_file() and place.suffix.lower() not in (".yaml", ".yml"))):
        yield place, None if images is None else Path(images)
        return
    table = read_annotations(path)
    own = table.sources[0].images
    with tempfile.TemporaryDirectory(prefix="longtail-") as folder:
        file = Path(folder) / "annotations.json"
        file.write_text(json.dumps(table.to_coco(), ensure_ascii=False, allow_nan=False), encoding="utf-8")
        yield file, Path(images) if images is not None else None if own is None else Path(own)


def _preferred(folder: Path, prefer: str) -> str | None:
    known = splits_of(folder)
    if known and prefer not in known:
        raise UsageError(f"{folder} has the splits {', '.join(known)}; name one of them, e.g. {folder}:{known[0]}")
    return prefer if known else None


def _hint(path: Path) -> str:
    inner = sorted(each.parent.name for each in path.glob("*/Annotations"))
    if inner:
        return f"; it holds the VOC folders {', '.join(inner)}: name one of them, or several one by one"
    files = sorted(each for each in [*path.glob("*.json"), *path.glob("annotations/*.json")])
    return f"; it holds {files[0]}" if files else ""
