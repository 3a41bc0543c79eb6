"""Folders of pictures by class: every picture is one object, the whole of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longtail.data.assemble import Object, Picture, Problems, columns, picture_size
from longtail.data.table import IMAGE_SUFFIXES
from longtail.schema.errors import DataError

SPLITS = ("train", "val", "test")


def is_image_folder(path: Path) -> bool:
    """Whether a folder's sub-folders hold pictures and nothing else makes it another format."""
    return any(has_pictures(folder) for folder in sub_folders(path))


def sub_folders(path: Path) -> list[Path]:
    """The folders in a folder, in the order of their names, hidden ones left out."""
    with os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def has_pictures(folder: Path) -> bool:
    """Whether a picture lies directly in a folder."""
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries)


def split_folder(path: Path, split: str | None, prefer: str | None) -> Path:
    """The folder of a split: ``path/train`` where it holds classes, or ``path`` itself if it has no splits.

    Raises:
        DataError: there is no such split, or several and none was named.
    """
    splits = [name for name in SPLITS if (path / name).is_dir() and is_image_folder(path / name)]
    wanted = split or (prefer if prefer in splits else None)
    if wanted is not None:
        folder = path / wanted
        if not folder.is_dir() or not is_image_folder(folder):
            known = ", ".join(splits) or "none"
            raise DataError(f"{path} has no folder {wanted} with pictures by class; it has: {known}")
        return folder
    if splits and not is_image_folder(path):
        raise DataError(f"{path} holds the splits {', '.join(splits)}; name one, e.g. {path}:{splits[0]}")
    return path


def read_image_folder(path: Path | str, *, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The columns of an :class:`~longtail.data.table.AnnotationTable` in which every picture has one object, its frame.

    Args:
        path: a folder with a folder per class; pictures may lie deeper in them. Sizes come from the headers.
        names: the class list; None = the folders' names in alphabetical order.

    Raises:
        DataError: no pictures, or some that cannot be read; all are named.
    """
    root = Path(path)
    folders = sub_folders(root)
    classes = [folder.name for folder in folders] if names is None else list(names)
    problems = Problems(root)
    pictures: list[Picture] = []
    objects: list[Object] = []
    for label, name in enumerate(classes):
        if not (root / name).is_dir():
            continue
        files = sorted(each for each in (root / name).rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
        for file in files:
            try:
                height, width = picture_size(file)
            except DataError as error:
                problems.add(error)
                continue
            objects.append(Object(len(pictures), label, (0.0, 0.0, float(width), float(height))))
            pictures.append(Picture(file.relative_to(root).as_posix(), height, width))
    problems.refuse()
    if not pictures:
        raise DataError(f"{root} holds no pictures by class: one folder per class, pictures inside")
    notes = [f"{root}: pictures by class, each of them one object"]
    return columns(root, root, pictures, objects, classes, notes)
