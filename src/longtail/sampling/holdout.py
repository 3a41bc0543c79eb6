"""A stratified part of the training images that is kept from training."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def holdout_images(
    image_index: NDArray[np.int32],
    label: NDArray[np.int32],
    *,
    num_images: int,
    num_classes: int,
    fraction: float,
    seed: int,
) -> NDArray[np.int64]:
    """Rows of the images held out, ascending: about ``fraction`` of the images of every class that has enough.

    A class with n images has ``floor(fraction * n)`` to give. Classes that would give none are *thin*: no image that
    holds one is taken. The others are visited from the fewest images to the most; each takes images in a random order
    until it has given its number, but none that would make a class give more than it has to. Classes that live in
    images of thin classes, or in each other's, may give fewer. Images without objects stay.

    Args:
        image_index: (A,) image of every object.
        label: (A,) its class, 0..C-1.
        num_images: I.
        num_classes: C.
        fraction: in (0, 1).
        seed: source of the order, at least 0.

    Raises:
        ValueError: a fraction out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    pairs = np.unique(image_index.astype(np.int64) * num_classes + label.astype(np.int64))
    image, kind = pairs // num_classes, pairs % num_classes
    available = np.bincount(kind, minlength=num_classes)
    left = np.floor(fraction * available + 1e-9).astype(np.int64)
    open_ = np.ones(num_images, dtype=np.bool_)
    open_[image[left[kind] == 0]] = False

    first = np.searchsorted(image, np.arange(num_images + 1))
    by_class = np.argsort(kind, kind="stable")
    begin = np.searchsorted(kind[by_class], np.arange(num_classes + 1))
    generator = np.random.Generator(np.random.PCG64(seed))
    taken = np.zeros(num_images, dtype=np.bool_)
    for each in np.argsort(available, kind="stable").tolist():
        candidates = image[by_class[begin[each] : begin[each + 1]]]
        for row in generator.permutation(candidates[open_[candidates]]).tolist():
            if left[each] == 0:
                break
            own = kind[first[row] : first[row + 1]]
            if not taken[row] and (left[own] > 0).all():
                taken[row] = True
                left[own] -= 1
    return np.flatnonzero(taken).astype(np.int64)


def smallest_class(fraction: float) -> int:
    """Images from which on a class gives some."""
    return math.ceil(1 / fraction - 1e-9)
