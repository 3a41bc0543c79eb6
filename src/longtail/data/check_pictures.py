"""Defects of the pictures behind an annotation file."""

from __future__ import annotations

import hashlib
import os
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.data.findings import Findings, escapes

MAX_PIXELS = 178_000_000
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Pictures:
    """The pictures of annotations.

    Attributes:
        ids: (I,) of the images.
        names: (I,) file names, None where there is none.
        sizes: (I, 2) height and width, 0 = unknown.
        folders: (I,) what each name starts from, resolved.
    """

    ids: Sequence[Any]
    names: Sequence[str | None]
    sizes: NDArray[Any]
    folders: Sequence[Path]


def examine_pictures(pictures: Pictures, findings: Findings, *, deep: bool, max_pixels: int) -> None:
    """Every picture: there, readable, upright of the annotated size, not huge.

    Args:
        pictures: what is looked at.
        findings: gets what is wrong.
        deep: decode every pixel; otherwise headers (and the check sums of PNG).
        max_pixels: larger ones are found, and never decoded.
    """
    rows: list[int] = []
    paths: list[Path] = []
    for row, (folder, name) in enumerate(zip(pictures.folders, pictures.names, strict=True)):
        path = picture_path(folder, name)
        if path is not None:
            rows.append(row)
            paths.append(path)
        elif name is not None and not escapes(name):  # otherwise it has been found already
            findings.add("file-name-escapes", row, pictures.ids[row], repr(name))
    spelling = spellings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            results = pool.map(partial(examine_picture, deep=deep, max_pixels=max_pixels), paths)
            for row, path, (code, size, detail) in zip(rows, paths, results, strict=True):
                given = pictures.sizes[row].astype(int).tolist()
                if code == "picture-missing" and spelling(path):
                    code, detail = "picture-spelling", f"{pictures.names[row]!r}, there is {spelling(path)!r}"
                elif code == "" and 0 not in given and np.any(given != np.array(size)):
                    code = "picture-size"
                    detail = f"{pictures.names[row]!r} is {size[0]} x {size[1]} (height x width), given as "
                    detail += f"{given[0]} x {given[1]}"
                if code:
                    findings.add(code, row, pictures.ids[row], detail)


def examine_picture(path: Path, *, deep: bool, max_pixels: int) -> tuple[str, tuple[int, int], str]:
    """(code of the defect or nothing, (height, width) upright, detail) of one picture."""
    size = (0, 0)
    try:
        if not path.is_file():
            return "picture-missing", size, str(path)
        with Image.open(path) as picture:
            size = (picture.height, picture.width)
            if size[0] * size[1] > max_pixels:
                return "picture-huge", size, f"{path} has {size[1]} x {size[0]} pixels, more than {max_pixels}"
            if deep:
                picture.load()
                exif = picture.getexif()
            else:
                exif = Image.Image.getexif(picture)  # that of PNG files would decode them
                picture.verify()
            if exif.get(ORIENTATION) in SIDEWAYS:
                size = (size[1], size[0])
    except Image.DecompressionBombError as error:
        return "picture-huge", size, f"{path}: {error}"
    except Exception as error:  # decoders fail in many ways
        return "picture-broken", size, f"{path}: {error}"
    return "", size, ""


def picture_path(root: Path, name: str | None) -> Path | None:
    """Where a picture lies below the (resolved) root; None without a name or where it leads out."""
    if name is None:
        return None
    try:
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError):
        return root / "\N{REPLACEMENT CHARACTER}"
    return path if path.is_relative_to(root) else None


def spellings() -> Callable[[Path], str]:
    """A function that finds the name under which a missing file is there after all, or nothing."""
    folders: dict[Path, dict[str, str]] = {}

    def form(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    def find(path: Path) -> str:
        if path.parent not in folders:
            names = os.listdir(path.parent) if path.parent.is_dir() else []
            folders[path.parent] = {form(name): name for name in names}
        return folders[path.parent].get(form(path.name), "")

    return find


def same_content(first: Sequence[Path], second: Sequence[Path]) -> dict[Path, Path]:
    """Files of the first list whose content a file of the second list has; only files of equal length are read."""
    by_length: dict[int, list[Path]] = {}
    for path in second:
        if path.is_file():
            by_length.setdefault(path.stat().st_size, []).append(path)
    digests: dict[Path, bytes] = {}

    def digest(path: Path) -> bytes:
        if path not in digests:
            with path.open("rb") as file:
                digests[path] = hashlib.file_digest(file, "sha256").digest()
        return digests[path]

    found: dict[Path, Path] = {}
    for path in first:
        others = by_length.get(path.stat().st_size, []) if path.is_file() else []
        same = next((other for other in others if digest(other) == digest(path)), None)
        if same is not None:
            found[path] = same
    return found
