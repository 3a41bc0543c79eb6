"""Class first, then one of its pictures: SimCal's bi-level sampling (Wang et al., ECCV 2020, section 3.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtail.sampling.images import ImageSampler
from longtail.sampling.repeat_factor import image_classes


class BiLevelSampler(ImageSampler):
    """Draws classes uniformly and with replacement, and for each of them one of its pictures.

    A batch of 16 pictures is a step of 16 classes, which may repeat. The class a picture was drawn for goes along with
    it (:meth:`labels`), so that a calibrated head learns from the regions of this class alone. Classes without
    pictures, and pictures without objects, do not occur.

    Args:
        image_start: (I + 1,) where every picture's objects begin; they are sorted by picture.
        labels: (A,) class of every object, 0..C-1.
        num_classes: C.
        seed: source of every draw.
        length: pictures per epoch; None = as many as the data set has.

    Raises:
        ValueError: there is no object at all, or a length below 1.
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
            raise ValueError("bi-level sampling needs at least one object")
        if length is not None and length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self._pictures = picture[np.argsort(label, kind="stable")]
        self._counts = np.bincount(label, minlength=num_classes)
        self._start = np.cumsum(self._counts) - self._counts
        self._classes = np.flatnonzero(self._counts)
        self.length = self.num_images if length is None else length

    def labels(self, epoch: int) -> NDArray[np.int64]:
        """The class every picture of :meth:`epoch` was drawn for."""
        return self._draw(epoch)[0]

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """``length`` pictures."""
        drawn, share = self._draw(epoch)
        place = np.minimum((share * self._counts[drawn]).astype(np.int64), self._counts[drawn] - 1)
        rows: NDArray[np.int64] = self._pictures[self._start[drawn] + place].astype(np.int64)
        return rows

    def describe(self) -> str:
        """One line."""
        return (
            f"bi-level, one of {len(self._classes)} classes for every image, then one of its images; "
            f"{self.length} images per epoch"
        )

    def _draw(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Classes, and where in [0, 1) of a class's list its picture stands."""
        generator = self.generator(epoch)
        drawn = generator.choice(self._classes, size=self.length).astype(np.int64)
        return drawn, generator.random(self.length)
