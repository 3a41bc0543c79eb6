"""Repeat factor sampling by groups of classes (step-wise learning, released code)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longtail.sampling.exemplars import class_parts
from longtail.sampling.images import ImageSampler
from longtail.sampling.repeat_factor import RepeatFactors, RepeatFactorSampler, image_classes


class GroupRepeatFactorSampler(RepeatFactorSampler):
    """Repeats every picture ``ceil(max r(c))`` times, with ``r(c) = max(1, (t_g / f(c)) ** p_g)`` by the class's group.

    The groups follow from the whole training set, the frequencies f(c) from the pictures that are drawn from.

    Args:
        image_start, labels, num_classes: of the pictures that are drawn from, as for
            :func:`~longtail.sampling.repeat_factor.image_classes`.
        image_counts: (C,) pictures of every class in the whole training set.
        seed: source of the order.
        edges: a class belongs to the next group from so many training pictures on; ascending.
        thresholds: t of every group, that of the rarest classes first; 0 = its classes are never repeated.
        exponents: p of every group.
        epoch_length: ``"subset"``: an epoch is a random part of the repeated pictures, as long as without copies
            (released code); ``"oversampled"``: all of them.

    Raises:
        ValueError: edges that do not ascend, or another number of thresholds or exponents than of groups.
    """

    def __init__(
        self,
        image_start: NDArray[np.int64],
        labels: NDArray[np.int32],
        num_classes: int,
        *,
        image_counts: NDArray[np.int64],
        seed: int,
        edges: Sequence[int] = (11, 30, 101),
        thresholds: Sequence[float] = (0.003, 0.003, 0.003, 0.0),
        exponents: Sequence[float] = (0.5, 0.5, 0.3, 1.0),
        epoch_length: Literal["subset", "oversampled"] = "subset",
    ) -> None:
        ImageSampler.__init__(self, len(image_start) - 1, seed=seed)
        if not len(thresholds) == len(exponents) == len(edges) + 1:
            raise ValueError(f"{len(edges)} edges make {len(edges) + 1} groups, each with a threshold and an exponent")
        group = class_parts(image_counts, edges)
        limit, power = np.asarray(thresholds, dtype=np.float64)[group], np.asarray(exponents, dtype=np.float64)[group]
        picture, label, _ = image_classes(image_start, labels, num_classes)
        frequency = np.bincount(label, minlength=num_classes) / self.num_images
        present = frequency > 0
        factors = np.ones(num_classes)
        factors[present] = np.maximum(1.0, (limit[present] / frequency[present]) ** power[present])
        factors[limit == 0] = 1.0
        image_factors = np.ones(self.num_images)
        np.maximum.at(image_factors, picture, factors[label])
        self.factors = RepeatFactors(frequency, factors, image_factors, float(max(thresholds)))
        self.rounding = "ceil"
        self.epoch_length = epoch_length
        self._pairs = image_classes(image_start, labels, num_classes)
        self._num_classes = num_classes

    def copies(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """(I,) how often every picture is in the list an epoch is drawn from."""
        return np.ceil(self.factors.image_factors - 1e-9).astype(np.int64)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Every picture with its copies, shuffled; of them as many as there are pictures, or all."""
        rows = super().epoch(epoch)
        return rows[: self.num_images] if self.epoch_length == "subset" else rows

    def expected_copies(self) -> NDArray[np.float64]:
        """(I,) mean number of appearances per epoch."""
        copies = self.copies(self.generator(0)).astype(np.float64)
        return copies * self.num_images / copies.sum() if self.epoch_length == "subset" else copies

    def describe(self) -> str:
        """One line."""
        copies = int(self.copies(self.generator(0)).sum())
        length = self.num_images if self.epoch_length == "subset" else copies
        return f"group repeat factor, {length} images per epoch drawn from {copies} copies of {self.num_images}"
