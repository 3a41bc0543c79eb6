"""So many pictures of every class, for filling a memory before training (LOCE)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longtail.sampling.images import ImageSampler
from longtail.sampling.repeat_factor import image_classes


class ClassImages(ImageSampler):
    """``per_class`` pictures of every class, class by class.

    Classes come in the order in which they first appear among the objects, pictures of a class in the order of the data
    set or at random, from its first one again if it has too few. Classes without pictures do not occur.

    Args:
        image_start: (I + 1,) where every picture's objects begin; they are sorted by picture.
        labels: (A,) class of every object, 0..C-1.
        num_classes: C.
        per_class: pictures of every class, at least 1.
        choice: ``"first"`` (LOCE, released code) or ``"random"``, without repetition as long as the class has others;
            the same in every epoch (LOCE, paper).
        seed: source of the choice, >= 0.

    Raises:
        ValueError: there is no object at all, or ``per_class`` is below 1.
    """

    def __init__(
        self,
        image_start: NDArray[np.int64],
        labels: NDArray[np.int32],
        num_classes: int,
        *,
        per_class: int,
        choice: Literal["first", "random"] = "first",
        seed: int = 0,
    ) -> None:
        super().__init__(len(image_start) - 1, seed=seed)
        if not len(labels) or per_class < 1:
            raise ValueError(f"one picture of every class needs objects, got {len(labels)}, and per_class {per_class}")
        self.per_class = per_class
        self.choice = choice
        picture, label, _ = image_classes(image_start, labels, num_classes)
        order = np.argsort(label, kind="stable")
        if choice == "random":
            order = np.lexsort((self.generator(0).random(len(label)), label))  # by class, at random within it
        counts = np.bincount(label, minlength=num_classes)
        start = np.cumsum(counts) - counts
        seen, first = np.unique(labels, return_index=True)
        classes = seen[np.argsort(first)].astype(np.int64)
        turn = np.arange(per_class) % counts[classes][:, None]  # (classes, per_class)
        self._rows = picture[order][start[classes][:, None] + turn].reshape(-1).astype(np.int64)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """``per_class`` times the number of classes that have pictures."""
        return self._rows

    def describe(self) -> str:
        """One line."""
        which = "random " if self.choice == "random" else ""
        return f"{self.per_class} {which}images of each of {len(self._rows) // self.per_class} classes"
