"""Reads YOLO sets: pictures, one text file of objects per picture, and a YAML file with the class names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longtail.data.assemble import Object, Picture, Problems, columns, picture_size, read_lines
from longtail.data.table import IMAGE_SUFFIXES
from longtail.data.yolo_rows import RowReader, keypoint_columns
from longtail.schema.errors import DataError

SPLITS = ("train", "val", "test")
NO_SPLITS = ("path", "names", "nc", "download", "kpt_shape", "flip_idx", "channels")
SYNONYMS = {"valid": "val", "validation": "val"}


@dataclass(frozen=True)
class YoloSet:
    """What is known of a set before its pictures are read.

    Attributes:
        path: the YAML file, or the folder of a set without one.
        root: folder that relative paths start from.
        names: class names.
        splits: split -> folders or lists of pictures, as the file has them.
        keypoints: columns of keypoints behind every box; 0 = none.
    """

    path: Path
    root: Path
    names: list[str]
    splits: dict[str, list[str]]
    keypoints: int = 0


def read_yolo(path: Path | str, *, split: str | None = "train", images: Path | str | None = None) -> dict[str, Any]:
    """The columns of an :class:`~longtail.data.table.AnnotationTable`.

    A line is ``class cx cy w h`` (a box) or ``class x y x y x y ...`` (a polygon, whose hull is the box), in fractions
    of the picture's sides after its EXIF rotation. A line of nine columns is a polygon of four points, which is what an
    oriented box is, too. Behind boxes of a set with ``kpt_shape`` there are keypoints, which are not read. A picture
    without a text file has no objects. Nothing that the YAML file names is executed or downloaded.

    File names start from the folder ``images`` where all pictures lie below it, otherwise from the set's root, or from
    the deepest folder that holds all pictures.

    Args:
        path: the YAML file, or the folder it lies in, or a folder with ``images`` and ``labels`` and ``classes.txt``.
        split: ``"train"``, ``"val"``, ``"test"`` or another key of the YAML file; None = the only one there is.
        images: folder of the pictures, if they do not lie where the set says.

    Raises:
        DataError: everything that makes the set unusable, with file, line and remedy.
    """
    try:
        given = open_yolo(path)
        split = the_split(given, split)
        nominal = _pictures(given, split, moved=images is not None)
    except OSError as error:  # names that are too long, folders without permission
        raise DataError(f"{path}: {error}; correct the path") from None
    folder = _folder(given, nominal)
    actual = folder if images is None else Path(images)
    reader = RowReader(len(given.names), given.keypoints)
    problems = Problems(given.path)
    pictures: list[Picture] = []
    objects: list[Object] = []
    owners: dict[Path, Path] = {}
    without = 0
    for file in nominal:
        name = file.relative_to(folder).as_posix()
        try:
            height, width = picture_size(actual / name)
        except DataError as error:
            problems.add(error)
            continue
        labels = label_file(file, given.root)
        if owners.setdefault(labels, file) != file:
            problems.add(f"{labels} belongs to both {owners[labels]} and {file}; rename one of them")
        elif os.path.isfile(labels):
            objects += reader.read(labels, len(pictures), height, width, problems)
        else:
            without += 1
        pictures.append(Picture(name, height, width))
    problems.refuse()
    if without == len(pictures):
        raise DataError(
            f"{given.path}: none of the {without} pictures of the split {split!r} has a text file; looked for "
            f"{next(iter(owners))} and so on; put the labels there"
        )
    notes = reader.notes(str(given.path))
    if without:
        notes.append(f"{given.path}: {without} of {len(pictures)} pictures have no text file: they have no objects")
    return columns(f"{given.path}:{split}", actual, pictures, objects, given.names, notes)


def open_yolo(path: Path | str) -> YoloSet:
    """Reads the YAML file, or looks at the folder of a set without one.

    Raises:
        DataError: there is none or more than one, it is malformed, or it has no class names.
    """
    file = _yaml_file(Path(path))
    if file is None:
        return _bare_folder(Path(path))
    try:
        content = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid YAML: {error}; only plain values are read") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} must hold keys: names, and the splits' folders, e.g. train: images/train")
    root = file.parent.absolute()
    stated = content.get("path")
    if isinstance(stated, str) and stated and (root / stated).is_dir():
        root = _normal(root / stated)
    splits: dict[str, list[str]] = {}
    for key, value in content.items():
        entries = value if isinstance(value, list) else [value]
        if not isinstance(key, str) or key in NO_SPLITS or value is None:
            continue
        if entries and all(isinstance(entry, str) and entry for entry in entries):
            splits[SYNONYMS.get(key, key)] = entries
        elif key in SPLITS:
            raise DataError(f"{file}: {key} is {value!r}; give a folder, a list of folders, or a text file of paths")
    splits = splits or _split_folders(root)
    return YoloSet(file, root, _names(file, content), splits, keypoint_columns(file, content.get("kpt_shape")))


def the_split(given: YoloSet, split: str | None) -> str:
    """The name of a split, checked; the only one where none is named.

    Raises:
        DataError: the set does not have it, or has several.
    """
    known = ", ".join(given.splits) or "none"
    if split is None and len(given.splits) == 1:
        return next(iter(given.splits))
    if split is None:
        raise DataError(f"{given.path} has several splits ({known}); name one")
    split = SYNONYMS.get(split, split)
    if split not in given.splits:
        raise DataError(f"{given.path} has no split {split!r}; it has {known}")
    return split


def label_file(picture: Path, root: Path) -> Path:
    """The text file of a picture: the last folder ``images`` of its path becomes ``labels``, below the root if there is
    one; without such a folder the file lies beside the picture."""
    inner = picture.relative_to(root).parts[:-1] if picture.is_relative_to(root) else picture.parts[:-1]
    if "images" not in inner:
        return picture.with_suffix(".txt")
    folders = list(picture.parts[:-1])
    place = len(folders) - 1 - folders[::-1].index("images")
    folders[place] = "labels"
    return Path(*folders, f"{picture.stem}.txt")


def _yaml_file(path: Path) -> Path | None:
    """The YAML file; None for a folder without one."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"there is no file or folder {path}")
    found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    named = [each for each in found if each.stem in ("data", "dataset")]
    if len(named or found) > 1:
        raise DataError(f"{path} has several YAML files ({', '.join(each.name for each in found)}); give one of them")
    return next(iter(named or found), None)


def _bare_folder(path: Path) -> YoloSet:
    for place in (path / "classes.txt", path / "labels" / "classes.txt"):
        if place.is_file() and (path / "images").is_dir():
            names = [line for line in read_lines(place) if line]
            return YoloSet(path, path.absolute(), names, _split_folders(path) or {"train": ["images"]})
    raise DataError(f"{path} has neither a YAML file with the class names nor images, labels and classes.txt; add one")


def _split_folders(root: Path) -> dict[str, list[str]]:
    return {key: [f"images/{key}"] for key in SPLITS if (root / "images" / key).is_dir()}


def _names(path: Path, content: dict[Any, Any]) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(f"{path}: the keys of names are {sorted(names, key=str)}; they must count 0, 1, 2, ...")
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{path} has no class names; add names: [first, second, ...]")
    count = content.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{path}: nc is {count!r}, but there are {len(names)} names; correct one of them")
    return [str(name) for name in names]


def _pictures(given: YoloSet, split: str, *, moved: bool) -> list[Path]:
    """Nominal paths of all pictures of a split, without repeats; they exist unless they were ``moved``."""
    problems = Problems(given.path)
    pictures: dict[Path, None] = {}
    for entry in given.splits[split]:
        place = _normal(given.root / entry)
        if not place.exists() and entry.startswith("../"):  # exports that count from a folder below
            place = _normal(given.root / entry.removeprefix("../"))
        if place.is_dir():
            pictures |= dict.fromkeys(
                sorted(each for each in place.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
            )
        elif place.is_file():
            start = place.parent  # of lines that begin with ./; others start from the root
            lines = [line for line in read_lines(place) if line]
            pictures |= dict.fromkeys(
                _normal((start if line.startswith("./") else given.root) / line) for line in lines
            )
        else:
            remedy = "list the pictures in a text file" if moved else "correct it or `path`"
            problems.add(f"{given.path}: {split} is {entry}, but there is no {place}; {remedy}")
    problems.refuse()
    if not pictures:
        raise DataError(
            f"{given.path}: there are no pictures in {given.splits[split][0]} ({', '.join(IMAGE_SUFFIXES)})"
        )
    return list(pictures)


def _normal(path: Path) -> Path:
    """Without ``..``; links are not followed, because labels lie beside the link."""
    return Path(os.path.normpath(path))


def _folder(given: YoloSet, pictures: Sequence[Path]) -> Path:
    for folder in (given.root / "images", given.root):
        if all(picture.is_relative_to(folder) for picture in pictures):
            return folder
    return Path(os.path.commonpath([picture.parent for picture in pictures]))
