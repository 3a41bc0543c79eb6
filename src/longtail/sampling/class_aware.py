"""Class-aware sampling of pictures (Shen et al., ECCV 2016)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtail.sampling.images import ImageSampler
from longtail.sampling.repeat_factor import image_classes


class ClassAwareSampler(ImageSampler):
    """Goes through shuffled lists of classes; every visit of a class takes the next picture of its own shuffled list.

    Every class with pictures is visited equally often (up to one visit). Both lists are shuffled again when they are
    used up, and an epoch starts afresh, so that it depends on (seed, epoch) alone. Classes without pictures, and
    pictures without objects, do not occur.

    Args:
        image_start: (I + 1,) where every picture's objects begin; they are sorted by picture.
        labels: (A,) class of every object, 0..C-1.
        num_classes: C.
        seed: source of every shuffle.
        length: pictures per epoch; None = as many as the data set has.

    Raises:
        ValueError: there is no object at all.
    """

    def __init__(
        self,
        image_start: NDArray[np.int64],
        labels: NDArray[np.int32],
        num_classes: int,
        *,
        seed: int,
        length: int | None = None,
    ) -> None:
        super().__init__(len(image_start) - 1, seed=seed)
        picture, label, _ = image_classes(image_start, labels, num_classes)
        if not len(label):
            raise ValueError("class-aware sampling needs at least one object")
        order = np.argsort(label, kind="stable")
        self._pictures = picture[order]
        counts = np.bincount(label, minlength=num_classes)
        self._start = np.concatenate(([0], np.cumsum(counts)))
        self._classes = np.flatnonzero(counts)
        self.length = self.num_images if length is None else length

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """``length`` pictures."""
        generator = self.generator(epoch)
        cycles = -(-self.length // len(self._classes))
        visits = np.concatenate([generator.permutation(self._classes) for _ in range(cycles)])[: self.length]
        rows = np.empty(self.length, dtype=np.int64)
        for label in self._classes:
            places = np.flatnonzero(visits == label)
            own = self._pictures[self._start[label] : self._start[label + 1]]
            rounds = -(-len(places) // len(own))
            turns = [generator.permutation(own) for _ in range(rounds)]
            if turns:
                rows[places] = np.concatenate(turns)[: len(places)]
        return rows

    def describe(self) -> str:
        """One line."""
        return f"class-aware, {len(self._classes)} classes in turn, {self.length} images per epoch"
