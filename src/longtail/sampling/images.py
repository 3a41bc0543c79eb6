"""The contract of image samplers (seam 1): which pictures are learnt from, and in which order."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray


class ImageSampler(ABC):
    """Gives the list of pictures of every epoch, as a pure function of (seed, epoch).

    Nothing is remembered between epochs, so a run can be resumed anywhere, and the lists are cut into batches and
    shared between processes by the loader. There is deliberately no method that tells a sampler which epoch it is.

    Args:
        num_images: pictures in the training set, at least 1.
        seed: source of every draw, >= 0.
    """

    def __init__(self, num_images: int, *, seed: int) -> None:
        if num_images < 1:
            raise ValueError("an image sampler needs at least one picture")
        self.num_images = num_images
        self.seed = seed

    @abstractmethod
    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Rows of the pictures of this epoch, over all processes, in order. Its length may vary between epochs."""

    def labels(self, epoch: int) -> NDArray[np.int64] | None:
        """The class each of these pictures was drawn for, 0..C-1; None = for no class in particular."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """One line on what it does."""

    def generator(self, epoch: int) -> np.random.Generator:
        """The source of this epoch's draws."""
        return np.random.Generator(np.random.PCG64([self.seed, epoch]))


class UniformSampler(ImageSampler):
    """Every picture once per epoch, in random order."""

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """A permutation of all pictures."""
        return self.generator(epoch).permutation(self.num_images).astype(np.int64)

    def describe(self) -> str:
        """One line."""
        return f"uniform, {self.num_images} images per epoch"
