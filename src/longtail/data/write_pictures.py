"""Writes folders of pictures by class: from CIFAR, or cut out of the pictures of a detection set."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from longtail.data.cifar import Cifar, read_cifar
from longtail.data.long_tail import Profile, choose_rows, profile_counts
from longtail.data.sources import picture_folders
from longtail.data.table import AnnotationTable
from longtail.schema.errors import UsageError

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What was written: the folder, and by split the pictures of every class."""

    folder: Path
    counts: dict[str, dict[str, int]]


def write_cifar(
    source: Path,
    out: Path,
    *,
    imbalance: float | None = None,
    profile: Profile = "exponential",
    seed: int = 0,
    told: Told | None = None,
) -> Written:
    """``out/train/<class>/<row>.png`` and ``out/val/...`` from CIFAR; the validation part is the whole test set.

    Args:
        source: see :func:`longtail.data.cifar.read_cifar`.
        out: a new folder.
        imbalance: of the training part, in the order of the classes; None = all pictures.
        profile: how the counts fall.
        seed: which pictures of a class.
        told: called with pictures written and pictures in all.

    Raises:
        UsageError: ``out`` exists, or an imbalance that cannot be.
        DataError: the source cannot be read.
    """
    parts = {"train": read_cifar(source, "train"), "val": read_cifar(source, "val")}
    rows = {name: np.arange(len(part.labels)) for name, part in parts.items()}
    if imbalance is not None:
        labels, classes = parts["train"].labels, len(parts["train"].names)
        most = int(np.bincount(labels, minlength=classes).min())
        rows["train"] = choose_rows(
            labels, profile_counts(most, classes, imbalance=imbalance, profile=profile), seed=seed
        )
    total, done = sum(len(own) for own in rows.values()), 0
    with new_folder(out) as draft:
        for name, part in parts.items():
            for label in part.names:
                (draft / name / label).mkdir(parents=True)
            for row in rows[name].tolist():
                path = draft / name / part.names[part.labels[row]] / f"{row:05d}.png"
                Image.fromarray(part.pictures[row]).save(path)
                done += 1
                if told is not None:
                    told(done, total)
    return Written(out, {name: counted(part, rows[name]) for name, part in parts.items()})


def counted(part: Cifar, rows: np.ndarray) -> dict[str, int]:
    """Pictures of every class."""
    return dict(zip(part.names, np.bincount(part.labels[rows], minlength=len(part.names)).tolist(), strict=True))


def write_crops(
    table: AnnotationTable, out: Path, *, margin: float = 0.1, least: int = 4, told: Told | None = None
) -> Written:
    """``out/<class>/<annotation id>.png``: every object cut out of its picture. Crowds, ignored objects and those with
    a side below ``least`` pixels are left out.

    Args:
        table: annotations whose pictures' folders are known.
        out: a new folder.
        margin: added on every side, as a share of the object's sides, as far as the picture goes.
        least: shortest side, in pixels.
        told: called with pictures read and pictures in all.

    Raises:
        UsageError: ``out`` exists, or class names that are no folder names.
        DataError: a picture that cannot be read.
    """
    bad = [name for name in table.category_names if not name.strip(" .") or set(name) & set("/\\\0")]
    if bad:
        raise UsageError(f"the class name {bad[0]!r} cannot name a folder; rename it in the annotations")
    roots = picture_folders(table)
    kept = ~(table.iscrowd | table.ignore) & (table.boxes_xywh[:, 2:].min(axis=1) >= least)
    counts = np.bincount(table.label[kept], minlength=table.num_classes).tolist()
    with new_folder(out) as draft:
        for name in table.category_names:
            (draft / name).mkdir(parents=True)
        for image in range(table.num_images):
            own = np.arange(table.image_start[image], table.image_start[image + 1])
            own = own[kept[own]]
            if len(own):
                source = 0 if table.source_of_image is None else int(table.source_of_image[image])
                with Image.open(roots[source] / table.file_names[image]) as file:
                    picture = ImageOps.exif_transpose(file).convert("RGB")
                for row in own.tolist():
                    x, y, w, h = table.boxes_xywh[row].tolist()
                    frame = (x - margin * w, y - margin * h, x + (1 + margin) * w, y + (1 + margin) * h)
                    place = draft / table.category_names[table.label[row]] / f"{table.annotation_ids[row]}.png"
                    picture.crop(clipped(frame, picture.width, picture.height)).save(place)
            if told is not None:
                told(image + 1, table.num_images)
    return Written(out, {"": dict(zip(table.category_names, counts, strict=True))})


def clipped(frame: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """Whole pixels around a frame, inside the picture."""
    left, top = max(0, int(np.floor(frame[0]))), max(0, int(np.floor(frame[1])))
    right, bottom = min(width, int(np.ceil(frame[2]))), min(height, int(np.ceil(frame[3])))
    return left, top, max(right, left + 1), max(bottom, top + 1)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears at ``out`` when the block is done.

    Raises:
        UsageError: something lies there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists; choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield draft
        draft.chmod(0o755)
        if out.exists():
            out.rmdir()
        os.replace(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
