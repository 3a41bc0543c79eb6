"""Annotations in columns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.files import write_text
from longtail.data.masks import MaskColumn
from longtail.data.statistics import ClassStatistics, Count
from longtail.schema.errors import DataError

if TYPE_CHECKING:
    from typing import Self

    from longtail.data.report import Finding

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class LabelLists:
    """A list of labels per image: those of image i are ``labels[start[i]:start[i + 1]]``."""

    start: NDArray[np.int64]
    labels: NDArray[np.int32]

    def of(self, image: int) -> NDArray[np.int32]:
        """Labels of one image."""
        return self.labels[self.start[image] : self.start[image + 1]]

    def take(self, images: NDArray[np.int64]) -> LabelLists:
        """The lists of some images, in the order of ``images``."""
        lists = [self.of(int(image)) for image in images]
        start = np.concatenate(([0], np.cumsum([len(labels) for labels in lists]))).astype(np.int64)
        return LabelLists(start, np.concatenate([*lists, np.zeros(0, np.int32)]).astype(np.int32))


@dataclass(frozen=True)
class Classes:
    """A label set: ``ids`` and ``names`` (C,) in the order of the labels; ``source`` says whose it is."""

    ids: list[int | str]
    names: list[str]
    source: str


@dataclass(frozen=True)
class Source:
    """Where images and annotations come from: a file or folder, and the folder its pictures lie in, if known."""

    name: str
    images: str | None


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """Images and annotations of one data set. Labels are 0..C-1 inside; original ids and names are kept.

    Attributes:
        source: the file it came from.
        image_ids: (I,) original ids.
        file_names: (I,) paths below the image folder.
        heights, widths: (I,) pixels, 0 = unknown.
        category_ids, category_names: (C,) original ids and names, in the order of the labels.
        annotation_ids: (A,) original ids.
        image_index: (A,) row of the image; annotations are sorted by it.
        label: (A,) 0..C-1.
        boxes_xywh: (A, 4) left, top, width, height in pixels, as in the file.
        area: (A,) square pixels.
        iscrowd, ignore: (A,) flags.
        masks: segmentations; None when no annotation has one.
        negatives, not_exhaustive: per image, labels known to be absent, and labels not marked completely (LVIS).
        image_start: (I + 1,) annotations of image i are ``image_start[i]:image_start[i + 1]``.
        sources: what was read, with its pictures' folder; more than one in a joined table, none if nobody said.
        source_of_image: (I,) which of ``sources`` an image is from; None = all from the first.
        notes: what the reader has to say: things it left out, filled in or renamed.
        findings: what the rules say about the file; see :mod:`longtail.data.rules`.
        sha256: of the file's bytes; empty where the table is not one file's.
    """

    source: str
    image_ids: NDArray[Any]
    file_names: list[str]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    category_ids: NDArray[Any]
    category_names: list[str]
    annotation_ids: NDArray[Any]
    image_index: NDArray[np.int32]
    label: NDArray[np.int32]
    boxes_xywh: NDArray[np.float64]
    area: NDArray[np.float64]
    iscrowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    masks: MaskColumn | None
    negatives: LabelLists | None
    not_exhaustive: LabelLists | None
    image_start: NDArray[np.int64]
    sources: tuple[Source, ...] = ()
    source_of_image: NDArray[np.int32] | None = None
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    sha256: str = ""

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.file_names)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.category_names)

    @property
    def num_empty(self) -> int:
        """Images without annotations."""
        return int((np.diff(self.image_start) == 0).sum())

    @property
    def federated(self) -> bool:
        """Whether every image lists its negative and its not exhaustively marked classes, as LVIS does."""
        return self.negatives is not None and self.not_exhaustive is not None

    @property
    def classes(self) -> Classes:
        """The label set."""
        return Classes(self.category_ids.tolist(), list(self.category_names), self.source)

    def rows_of(self, image: int) -> slice:
        """Annotations of one image."""
        return slice(int(self.image_start[image]), int(self.image_start[image + 1]))

    def boxes_xyxy(self, rows: slice | NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """(n, 4) corners x1, y1, x2, y2 in pixels of all or some annotations."""
        boxes = self.boxes_xywh if rows is None else self.boxes_xywh[rows]
        return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1).astype(np.float32)

    def statistics(self, *, edges: tuple[int, int] = (10, 100), count: Count = "images") -> ClassStatistics:
        """Counts and frequency groups; crowd and ignored annotations are not counted."""
        kept = ~(self.iscrowd | self.ignore)
        label = self.label[kept].astype(np.int64)
        pairs = np.unique(self.image_index[kept].astype(np.int64) * self.num_classes + label)
        return ClassStatistics(
            names=list(self.category_names),
            image_counts=np.bincount(pairs % self.num_classes, minlength=self.num_classes).astype(np.int64),
            instance_counts=np.bincount(label, minlength=self.num_classes).astype(np.int64),
            num_images=self.num_images,
            num_nonempty=len(np.unique(pairs // self.num_classes)),
            edges=edges,
            count=count,
        )

    def without_empty(self) -> AnnotationTable:
        """Only the images that have annotations."""
        return self.select(np.flatnonzero(np.diff(self.image_start)).astype(np.int64))

    def select(self, images: NDArray[np.int64]) -> AnnotationTable:
        """The given images, in ascending order, with their annotations; where all annotations stay, none is copied."""
        images = np.unique(images)
        counts = np.diff(self.image_start)[images]
        chosen = replace(
            self,
            image_ids=self.image_ids[images],
            file_names=[self.file_names[image] for image in images.tolist()],
            heights=self.heights[images],
            widths=self.widths[images],
            image_index=np.repeat(np.arange(len(images), dtype=np.int32), counts),
            negatives=None if self.negatives is None else self.negatives.take(images),
            not_exhaustive=None if self.not_exhaustive is None else self.not_exhaustive.take(images),
            image_start=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            source_of_image=None if self.source_of_image is None else self.source_of_image[images],
        )
        if len(chosen.image_index) == len(self.label):  # mapped columns stay where they are, shared by all processes
            return chosen
        rows = np.flatnonzero(np.isin(self.image_index, images)).astype(np.int64)
        return replace(
            chosen,
            annotation_ids=self.annotation_ids[rows],
            label=self.label[rows],
            boxes_xywh=self.boxes_xywh[rows],
            area=self.area[rows],
            iscrowd=self.iscrowd[rows],
            ignore=self.ignore[rows],
            masks=None if self.masks is None else self.masks.take(rows),
        )

    def relabelled(self, label_map: NDArray[np.int64], classes: AnnotationTable | Classes) -> AnnotationTable:
        """The same annotations with another label set.

        Args:
            label_map: (C,) the new label of every old one, -1 = it has none (then no annotation may use it).
            classes: the new label set.
        """
        classes = classes.classes if isinstance(classes, AnnotationTable) else classes
        return replace(
            self,
            category_ids=id_array(classes.ids),
            category_names=list(classes.names),
            label=label_map[self.label].astype(np.int32),
            negatives=_map_lists(self.negatives, label_map),
            not_exhaustive=_map_lists(self.not_exhaustive, label_map),
        )

    @classmethod
    def from_coco(cls, path: Path | str, *, images: Path | str | None = None) -> Self:
        """Reads a COCO or LVIS annotation file, plain or ``.gz``; see :func:`longtail.data.coco.read_coco`.

        Args:
            path: the file; it is never changed.
            images: the picture folder; where given, every picture must be in it.

        Raises:
            DataError: the file cannot be used, or pictures are missing.
        """
        from longtail.data.coco import read_coco, require_pictures

        columns = read_coco(Path(path))
        notes = (columns.note,) if columns.note else ()
        table = cls(**columns.arrays, notes=notes, findings=columns.findings, sha256=columns.sha256)
        if images is not None:
            require_pictures(table, Path(images))
        return table

    @classmethod
    def from_voc(
        cls,
        folder: Path | str,
        *,
        split: str | None = None,
        names: Sequence[str] | None = None,
        images: Path | str | None = None,
        masks: bool = False,
    ) -> Self:
        """Reads a Pascal VOC folder; see :func:`longtail.data.voc.read_voc` for arguments and errors."""
        from longtail.data.voc import read_voc

        return cls(**read_voc(folder, split=split, names=names, images=images, masks=masks))

    @classmethod
    def from_yolo(cls, path: Path | str, *, split: str | None = "train", images: Path | str | None = None) -> Self:
        """Reads a YOLO ``data.yaml`` or folder; see :func:`longtail.data.yolo.read_yolo` for arguments and errors."""
        from longtail.data.yolo import read_yolo

        return cls(**read_yolo(path, split=split, images=images))

    @classmethod
    def from_image_folder(cls, path: Path | str, *, names: Sequence[str] | None = None) -> Self:
        """Reads a folder of pictures by class; see :func:`longtail.data.image_folder.read_image_folder`."""
        from longtail.data.image_folder import read_image_folder

        return cls(**read_image_folder(path, names=names))

    def to_coco(self) -> dict[str, Any]:
        """A COCO or LVIS dictionary with original ids; see :func:`longtail.data.coco.coco_content`."""
        from longtail.data.coco import coco_content

        return coco_content(self)

    def write_coco(self, path: Path | str) -> None:
        """Writes :meth:`to_coco` as plain JSON; the file appears when it is complete.

        Raises:
            DataError: ``path`` is the file the table was read from, which is never changed, or ends in ``.gz``.
        """
        if Path(path).resolve() == Path(self.source).resolve():
            raise DataError(f"{path} is the file the annotations were read from; write to another name")
        if Path(path).suffix == ".gz":
            raise DataError(f"annotations are written as plain JSON; give a name that ends in .json, not {path}")
        write_text(Path(path), json.dumps(self.to_coco(), ensure_ascii=False, allow_nan=False))

    @classmethod
    def from_image_list(
        cls,
        images: Path | str | Sequence[Path | str],
        *,
        categories: tuple[Sequence[str], Sequence[int | str]] | None = None,
    ) -> Self:
        """Pictures without annotations, for prediction.

        Args:
            images: a picture, a folder (searched through, in alphabetical order) or a list of pictures.
            categories: names and ids of a detector's classes.

        Raises:
            DataError: there are no pictures.
        """
        if isinstance(images, Path | str):
            root = Path(images)
            if not root.exists():
                raise DataError(f"there is no picture and no folder {root}")
            names = [root.name]
            if root.is_dir():
                found = (path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
                names = sorted(path.relative_to(root).as_posix() for path in found)
        else:
            names = [str(path) for path in images]
        if not names:
            where = f"in the folder {images}" if isinstance(images, Path | str) else "in the list"
            raise DataError(f"there are no pictures {where} ({', '.join(IMAGE_SUFFIXES)})")
        count = len(names)
        class_names, ids = categories or ([], [])
        none = np.zeros(0)
        return cls(
            source=str(images) if isinstance(images, Path | str) else "a list of pictures",
            image_ids=np.arange(1, count + 1),
            file_names=names,
            heights=np.zeros(count, np.int32),
            widths=np.zeros(count, np.int32),
            category_ids=id_array(list(ids)),
            category_names=list(class_names),
            annotation_ids=none.astype(np.int64),
            image_index=none.astype(np.int32),
            label=none.astype(np.int32),
            boxes_xywh=np.zeros((0, 4)),
            area=none,
            iscrowd=none.astype(np.bool_),
            ignore=none.astype(np.bool_),
            masks=None,
            negatives=None,
            not_exhaustive=None,
            image_start=np.zeros(count + 1, np.int64),
        )


def id_array(ids: Sequence[int | str]) -> NDArray[Any]:
    """Original ids as a column: 64-bit integers if all are such, objects otherwise."""
    if all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in ids):
        return np.array(ids, dtype=np.int64)
    column = np.empty(len(ids), dtype=object)
    column[:] = list(ids)
    return column


def match_categories(training: AnnotationTable | Classes, other: AnnotationTable) -> NDArray[np.int64]:
    """The training label of every label of ``other``, by class name; by name and id for names that occur repeatedly.

    Classes that ``other`` lists but never uses may be missing in training; they map to -1.

    Raises:
        DataError: annotations of ``other`` use classes that training does not have; both sources are named.
    """
    own = training.classes if isinstance(training, AnnotationTable) else training
    theirs = other.classes
    repeated = {name for names in (own.names, theirs.names) for name, times in Counter(names).items() if times > 1}

    def keys(classes: Classes) -> list[Any]:
        pairs = zip(classes.names, classes.ids, strict=True)
        return [(name, identity) if name in repeated else name for name, identity in pairs]

    known = {key: label for label, key in enumerate(keys(own))}
    label_map = np.array([known.get(key, -1) for key in keys(theirs)], dtype=np.int64)
    lacking = [theirs.names[label] for label in np.unique(other.label).tolist() if label_map[label] < 0]
    if lacking:
        raise DataError(
            f"{other.source} has annotations of {len(lacking)} classes that {own.source} does not have "
            f"({', '.join(map(repr, lacking[:5]))}{', ...' if len(lacking) > 5 else ''}); classes are matched by name, "
            "and by name and id where a name occurs more than once; give annotation files of one label set"
        )
    return label_map


def _map_lists(lists: LabelLists | None, label_map: NDArray[np.int64]) -> LabelLists | None:
    if lists is None:
        return None
    mapped = label_map[lists.labels]
    image = np.repeat(np.arange(len(lists.start) - 1), np.diff(lists.start))
    kept = mapped >= 0
    counts = np.bincount(image[kept], minlength=len(lists.start) - 1)
    return LabelLists(np.concatenate(([0], np.cumsum(counts))).astype(np.int64), mapped[kept].astype(np.int32))
