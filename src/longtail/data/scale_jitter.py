"""Random scales and crops, to a fixed size or not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtail.data.geometry import Sample, filled_up, integer, resized_window, uniform


class FixedSize(torch.nn.Module):
    """Gives every picture one size: what is larger is cropped at a random place, what is smaller is filled up.

    Boxes of cropped objects are recomputed from their masks where there are masks; objects cropped away are removed.

    Args:
        size: (height, width) in pixels.
        fill: R, G, B of what is filled up.
        corner: put small pictures in the top left corner instead of a random place.
    """

    def __init__(self, size: tuple[int, int], *, fill: Sequence[int] = (0, 0, 0), corner: bool = False) -> None:
        super().__init__()
        if min(size) < 1:
            raise ValueError(f"height and width must be at least 1 pixel, got {list(size)}")
        self.size = size
        self.fill = list(fill)
        self.corner = corner

    def forward(self, image: Tensor, sample: Sample) -> tuple[Tensor, Sample]:
        """(image, sample) -> (image, sample) of the fixed size."""
        own = (image.shape[-2], image.shape[-1])
        if own[0] > self.size[0] or own[1] > self.size[1]:
            image, sample = resized_window(image, sample, own, random_window(own, self.size))
        spare = (self.size[0] - image.shape[-2], self.size[1] - image.shape[-1])
        place = (0, 0) if self.corner else (integer(0, spare[0]), integer(0, spare[1]))
        return filled_up(image, sample, self.size, place, self.fill)


class LargeScaleJitter(torch.nn.Module):
    """Resizes by a random factor, then crops at a random place or fills up to a fixed size.

    Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021, arXiv
    2012.07177. At factor 1 the picture just fits into the size; its aspect ratio stays. Small pictures lie in the top
    left corner. Boxes of cropped objects are recomputed from their masks where there are masks; objects that are
    cropped away, or too small for a pixel of mask, are removed.

    Args:
        size: (height, width) in pixels.
        scale: the factor is drawn uniformly from this range; the paper's is 0.1 to 2, its standard jitter 0.8 to 1.25.
        pad: whether small pictures are filled up; if not, they stay small, and whoever batches them knows their size.
        fill: R, G, B of what is filled up.
        nearest: take the nearest pixel instead of interpolating.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.1, 2.0),
        *,
        pad: bool = True,
        fill: Sequence[int] = (124, 116, 104),
        nearest: bool = False,
    ) -> None:
        super().__init__()
        if min(size) < 1 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"size {list(size)} must be at least 1 pixel, scale {list(scale)} a range above 0")
        self.size = size
        self.scale = scale
        self.pad = pad
        self.fill = list(fill)
        self.nearest = nearest

    def forward(self, image: Tensor, sample: Sample) -> tuple[Tensor, Sample]:
        """(image, sample) -> (image, sample)."""
        height, width = image.shape[-2:]
        factor = min(self.size[0] / height, self.size[1] / width) * uniform(*self.scale)
        new = (max(1, round(height * factor)), max(1, round(width * factor)))
        image, sample = resized_window(image, sample, new, random_window(new, self.size), nearest=self.nearest)
        return filled_up(image, sample, self.size, (0, 0), self.fill) if self.pad else (image, sample)


class RandomSizeCrop(torch.nn.Module):
    """Cuts a window of random height and width out at a random place (DETR).

    Args:
        least, most: pixels; both sides are drawn from least..most, or less where the picture is smaller.
    """

    def __init__(self, least: int, most: int) -> None:
        super().__init__()
        if not 1 <= least <= most:
            raise ValueError(f"the sides of a crop are drawn from 1 pixel on, got {least} to {most}")
        self.least = least
        self.most = most

    def forward(self, image: Tensor, sample: Sample) -> tuple[Tensor, Sample]:
        """(image, sample) -> (image, sample) of the crop."""
        own = (image.shape[-2], image.shape[-1])
        height, width = (integer(min(self.least, side), min(self.most, side)) for side in own)
        return resized_window(image, sample, own, random_window(own, (height, width)))


def random_window(own: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a window of at most ``size`` at a random place of a picture of size ``own``."""
    height, width = min(own[0], size[0]), min(own[1], size[1])
    return integer(0, own[0] - height), integer(0, own[1] - width), height, width
