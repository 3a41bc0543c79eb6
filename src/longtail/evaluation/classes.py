"""What is known of every class before a detection is looked at: names, groups, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtail.data.statistics import ClassStatistics
from longtail.data.table import AnnotationTable
from longtail.schema.errors import DataError, UsageError

GROUPS = ("r", "c", "f")
UNSEEN = "-"
"""Group of classes without any training image: a group of its own, not rare."""


@dataclass(frozen=True, eq=False)
class ClassInfo:
    """Columns over the classes of the evaluated annotations.

    Attributes:
        letters: (C,) ``r``, ``c``, ``f``, ``-`` for no training image, or empty where groups are unknown.
        train_images, train_instances: (C,) counts in the training annotations, or None where they are unknown.
        origin: where the groups come from, in words.
    """

    letters: list[str]
    train_images: NDArray[np.int64] | None
    train_instances: NDArray[np.int64] | None
    origin: str

    @property
    def has_groups(self) -> bool:
        """Whether groups are known."""
        return any(self.letters)


def describe_classes(
    truth: AnnotationTable, training: ClassStatistics | None, groups: Sequence[str] | None
) -> ClassInfo:
    """Groups and counts in the class order of ``truth``.

    Groups are never taken from the evaluated file: its counts say nothing about the training set.

    Args:
        truth: evaluated annotations.
        training: statistics of the training annotations; their classes must have the same names, in any order.
        groups: (C,) letters that take precedence over those of ``training``.

    Raises:
        DataError: the training annotations have other classes.
        UsageError: ``groups`` has another length or other letters.
    """
    images = instances = None
    letters = [""] * truth.num_classes
    origin = "unknown: no training statistics were given"
    if training is not None:
        order = _order(truth, list(training.names))
        images = np.asarray(training.image_counts, dtype=np.int64)[order]
        instances = np.asarray(training.instance_counts, dtype=np.int64)[order]
        letters = [str(training.group[row]) for row in order.tolist()]
        low, high = training.edges
        origin = f"training {training.count} per class: r 1-{low}, c {low + 1}-{high}, f above {high}"
    if groups is not None:
        letters = [str(letter) for letter in groups]
        origin = "given by the caller"
        if len(letters) != truth.num_classes or not set(letters) <= {*GROUPS, UNSEEN, ""}:
            raise UsageError(
                f"groups must be one of 'r', 'c', 'f' or '-' for each of the {truth.num_classes} classes, "
                f"got {len(letters)} entries with {sorted(set(letters))[:6]}"
            )
    return ClassInfo(letters=letters, train_images=images, train_instances=instances, origin=origin)


def _order(truth: AnnotationTable, names: list[str]) -> NDArray[np.int64]:
    """Row in the training statistics of every class of ``truth``."""
    wanted = list(truth.category_names)
    if names == wanted:
        return np.arange(len(wanted))
    position = {name: row for row, name in enumerate(names)}
    missing = [name for name in wanted if name not in position]
    if missing or len(position) != len(names) or len(set(wanted)) != len(wanted) or len(names) != len(wanted):
        detail = f"for example {missing[0]!r} is not among them" if missing else "their number or order differs"
        raise DataError(
            f"{truth.source} has {len(wanted)} classes, the training annotations {len(names)}, and {detail}; "
            "evaluate against annotations with the classes of the training set"
        )
    return np.array([position[name] for name in wanted], dtype=np.int64)
