"""Long-tailed parts of a data set: by a profile of targets per class, or by a list of ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.assemble import read_lines
from longtail.data.formats import read_annotations
from longtail.data.join import join_tables
from longtail.data.statistics import Count
from longtail.data.table import AnnotationTable, LabelLists
from longtail.schema.errors import DataError, UsageError

COCO_LT_BINS = (1, 20, 400, 8000)
COCO_LT_MOST, COCO_LT_LEAST = 10_000, 5


@dataclass(frozen=True, eq=False)
class Profile:
    """A wanted number of images or instances for every class.

    Attributes:
        targets: (C,) numbers, 0 for classes without objects.
        count: what is counted.
    """

    targets: NDArray[np.int64]
    count: Count


def exponential_profile(
    table: AnnotationTable,
    *,
    imbalance: float | None = None,
    count: Count = "images",
    most: int | None = None,
    least: int | None = None,
) -> Profile:
    """Targets that fall exponentially from the most frequent class to the rarest, by their order in the data.

    The class of rank k of K gets ``most * (least / most) ** (k / (K - 1))``, rounded, at least 1, and never more than
    it has. Classes without objects get 0.

    Args:
        table: annotations; crowd and ignored ones do not count.
        imbalance: ``most / least``, at least 1; give this or ``least``.
        count: ``"images"`` that hold the class, or ``"instances"``.
        most: target of the most frequent class; None, or more than it has = what it has.
        least: target of the rarest class, at least 1.

    Raises:
        UsageError: both or neither of ``imbalance`` and ``least``, or values out of range.
        DataError: annotations without objects.
    """
    if (imbalance is None) == (least is None):
        raise UsageError("a profile needs an imbalance factor or the least number: give one of them")
    if (imbalance is not None and not 1 <= imbalance < float("inf")) or (least is not None and least < 1):
        raise UsageError(f"the imbalance factor and the least number are at least 1, got {imbalance or least}")
    if most is not None and most < 1:
        raise UsageError(f"the most frequent class needs at least 1, got {most}")
    statistics = table.statistics()
    available = statistics.image_counts if count == "images" else statistics.instance_counts
    present = np.flatnonzero(available)
    if not len(present):
        raise DataError(f"{table.source} has no objects to choose by")
    order = present[np.argsort(-available[present], kind="stable")]
    top = min(int(available[order[0]]), most or int(available[order[0]]))
    factor = imbalance if imbalance is not None else max(1.0, top / (least or 1))
    share = np.arange(len(order)) / max(len(order) - 1, 1)
    targets = np.zeros(table.num_classes, dtype=np.int64)
    targets[order] = np.clip(np.rint(top * factor**-share), 1, available[order])
    return Profile(targets, count)


def coco_lt_profile(table: AnnotationTable) -> Profile:
    """A profile of the kind of COCO-LT (SimCal): instances fall exponentially over the bins [1, 20), [20, 400),
    [400, 8000) and [8000, -), from 10,000 to 5. The ends are this package's choice; the published list of images can be
    given as ids instead."""
    return exponential_profile(table, count="instances", most=COCO_LT_MOST, least=COCO_LT_LEAST)


def choose(table: AnnotationTable, profile: Profile, *, seed: int) -> NDArray[np.int64]:
    """Rows of images, ascending, with at most the target number of every class.

    Classes are visited from the smallest target to the largest; each takes images that hold it, in a random order,
    until it has its target. An image that would lift any class above its target is not taken, so frequent classes may
    stay below theirs. Images without objects are not taken.

    Args:
        table: annotations.
        profile: targets; crowd and ignored annotations do not count.
        seed: source of the order, at least 0.
    """
    kept = ~(table.iscrowd | table.ignore)
    pairs = table.image_index[kept].astype(np.int64) * table.num_classes + table.label[kept]
    pairs, objects = np.unique(pairs, return_counts=True)
    image, label = pairs // table.num_classes, pairs % table.num_classes
    weight = objects if profile.count == "instances" else np.ones_like(objects)
    first = np.searchsorted(image, np.arange(table.num_images + 1))
    by_class = np.argsort(label, kind="stable")
    begin = np.searchsorted(label[by_class], np.arange(table.num_classes + 1))
    generator = np.random.Generator(np.random.PCG64(seed))
    reached = np.zeros(table.num_classes, dtype=np.int64)
    taken = np.zeros(table.num_images, dtype=np.bool_)
    for each in np.argsort(profile.targets, kind="stable").tolist():
        for row in generator.permutation(image[by_class[begin[each] : begin[each + 1]]]).tolist():
            if reached[each] >= profile.targets[each]:
                break
            own = slice(first[row], first[row + 1])
            if not taken[row] and (reached[label[own]] + weight[own] <= profile.targets[label[own]]).all():
                taken[row] = True
                reached[label[own]] += weight[own]
    return np.flatnonzero(taken).astype(np.int64)


def by_image_ids(table: AnnotationTable, ids: Sequence[int | str]) -> AnnotationTable:
    """The images of a list, in the order of the table.

    Raises:
        DataError: ids that the table does not have.
    """
    rows = _rows("image", table.source, table.image_ids.tolist(), ids)
    return table.select(rows)


def by_annotation_ids(table: AnnotationTable, ids: Sequence[int | str]) -> AnnotationTable:
    """The annotations of a list and the images they are in. Where an image loses annotations of a class that is
    still to be seen in it, LVIS lists name the class as incomplete; in COCO files nothing can, and a note says how
    many.

    Raises:
        DataError: ids that the table does not have.
    """
    rows = _rows("annotation", table.source, table.annotation_ids.tolist(), ids)
    wanted = np.zeros(len(table.label), dtype=np.bool_)
    wanted[rows] = True
    images = np.unique(table.image_index[rows]).astype(np.int64)
    part = table.select(images)
    wanted = wanted[np.isin(table.image_index, images)]
    counts = np.bincount(part.image_index[wanted], minlength=part.num_images)
    kept = np.flatnonzero(wanted).astype(np.int64)
    lost = int((~wanted).sum())
    note = f"{lost} objects of these images are not in the list and are left out"
    if lost and not table.federated:
        note += "; whoever trains on them learns that they are background"
    incomplete = part.not_exhaustive
    if incomplete is not None:
        incomplete = _with(incomplete, part.image_index[~wanted], part.label[~wanted], part.num_classes)
    return replace(
        part,
        annotation_ids=part.annotation_ids[kept],
        image_index=part.image_index[kept],
        label=part.label[kept],
        boxes_xywh=part.boxes_xywh[kept],
        area=part.area[kept],
        iscrowd=part.iscrowd[kept],
        ignore=part.ignore[kept],
        masks=None if part.masks is None else part.masks.take(kept),
        not_exhaustive=incomplete,
        image_start=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        notes=(*part.notes, note) if lost else part.notes,
    )


def voc_0712(folder: Path | str, *, split: str = "trainval") -> AnnotationTable:
    """The union of VOC2007 and VOC2012, ``difficult`` objects kept and flagged.

    Args:
        folder: holds ``VOC2007`` and ``VOC2012``, as ``VOCdevkit`` does.
        split: of both.

    Raises:
        DataError: one of the two is missing or unusable.
    """
    return join_tables([read_annotations(Path(folder) / year, split=split) for year in ("VOC2007", "VOC2012")])


def read_ids(path: Path) -> list[int | str]:
    """Ids of a JSON list or of a text file with one id per line; words of digits are numbers.

    Raises:
        DataError: something else, or an empty file.
    """
    lines = [line for line in read_lines(path) if line]
    if not lines:
        raise DataError(f"{path} is empty; give one id per line, or a JSON list")
    if not lines[0].startswith("["):
        return [int(line) if line.isascii() and line.lstrip("-").isdigit() else line for line in lines]
    try:
        ids: Any = json.loads("\n".join(lines))
    except ValueError as error:
        raise DataError(f"{path} is not a JSON list: {error}") from None
    if not all(type(each) in (int, str) for each in ids):
        raise DataError(f"{path} must list ids, whole numbers or texts")
    return list(ids)


def _rows(kind: str, source: str, known: Sequence[int | str], ids: Sequence[int | str]) -> NDArray[np.int64]:
    row_of = {identity: row for row, identity in enumerate(known)}
    strange = [identity for identity in ids if identity not in row_of]
    if strange:
        raise DataError(
            f"{source} does not have {len(strange)} of the {len(ids)} {kind} ids, e.g. "
            f"{', '.join(map(repr, strange[:5]))}; give a list of its own ids"
        )
    return np.unique(np.array([row_of[identity] for identity in ids], dtype=np.int64))


def _with(lists: LabelLists, image: NDArray[np.int32], label: NDArray[np.int32], num_classes: int) -> LabelLists:
    """The lists with further (image, label) pairs, without repeats."""
    own = np.repeat(np.arange(len(lists.start) - 1), np.diff(lists.start))
    old = own.astype(np.int64) * num_classes + lists.labels
    pairs = np.unique(np.concatenate((old, image.astype(np.int64) * num_classes + label)))
    counts = np.bincount(pairs // num_classes, minlength=len(lists.start) - 1)
    start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return LabelLists(start, (pairs % num_classes).astype(np.int32))
