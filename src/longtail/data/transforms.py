"""Augmentation on torchvision's v2 transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from longtail.data.geometry import PROPOSALS, resize_picture, take, take_objects, with_area
from longtail.data.scale_jitter import FixedSize, RandomSizeCrop

NO_LIMIT = 2**31 - 1


class ResizeShortSide(v2.Transform):  # type: ignore[misc]
    """Resizes to a short side drawn from a list, with a limit on the long side; never changes the aspect ratio.

    Args:
        short_sides: pixels; one is drawn per picture.
        long_side: pixels; where the longer side would exceed it, it becomes this and the shorter side follows.
    """

    def __init__(self, short_sides: Sequence[int], long_side: int) -> None:
        super().__init__()
        if not short_sides or min(short_sides) < 1 or long_side < 1:
            raise ValueError(f"sides must be at least 1 pixel, got {list(short_sides)} and {long_side}")
        self.short_sides = list(short_sides)
        self.long_side = long_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the side and computes the new (height, width)."""
        height, width = v2.query_size(flat_inputs)
        side = self.short_sides[int(torch.randint(len(self.short_sides), ()))]
        factor = min(side / min(height, width), self.long_side / max(height, width))
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes one of picture, boxes, masks."""
        if isinstance(inpt, tv_tensors.Image):
            height, width = params["size"]
            return tv_tensors.Image(resize_picture(inpt.as_subclass(Tensor), (height, width)))
        return F.resize(inpt, params["size"], antialias=True)


class RandomTranspose(v2.Transform):  # type: ignore[misc]
    """Exchanges x and y with probability ``p``: with both flips, all eight ways to turn a picture that has no up."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws whether to do it."""
        return {"exchange": bool(torch.rand(()) < self.p)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Transposes one of picture, boxes (corners), masks."""
        if not params["exchange"]:
            return inpt
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            height, width = inpt.canvas_size
            corners = inpt.as_subclass(Tensor)[:, [1, 0, 3, 2]]
            return tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(width, height))
        return tv_tensors.wrap(inpt.as_subclass(Tensor).transpose(-1, -2).contiguous(), like=inpt)


class PaddedCrop(v2.Transform):  # type: ignore[misc]
    """Fills black pixels up on every side, then takes a window of the former size at a random place, as is usual with
    CIFAR. Of a side shorter than twice the pixels half as many as it has are filled up, so that every window holds half
    of the picture.

    Args:
        pixels: on every side, at least 1.
    """

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the window."""
        height, width = v2.query_size(flat_inputs)
        down, across = (min(self.pixels, side // 2) for side in (height, width))
        top, left = (int(torch.randint(2 * pixels + 1, ())) for pixels in (down, across))
        window = {"top": top, "left": left, "height": height, "width": width}
        return {"padding": [across, down, across, down], "window": window}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pads and crops one of picture, boxes, masks."""
        return F.crop(F.pad(inpt, params["padding"]), **params["window"])


class DropDegenerate(torch.nn.Module):
    """Clips boxes to the picture and removes objects that have no area left, with their labels and masks; and proposals
    without area."""

    def forward(self, image: Tensor, sample: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """(image, sample) -> (image, sample without them)."""
        boxes = F.clamp_bounding_boxes(sample["boxes"])
        result = {**sample, "boxes": boxes}
        if PROPOSALS in sample:
            proposals = F.clamp_bounding_boxes(sample[PROPOSALS])
            result[PROPOSALS] = take(proposals, with_area(proposals.as_subclass(Tensor)))
        kept = with_area(boxes.as_subclass(Tensor))
        return image, result if bool(kept.all()) else take_objects(result, kept)


def train_transform(
    short_sides: Sequence[int],
    long_side: int,
    *,
    flip: float = 0.5,
    vertical_flip: float = 0.0,
    transpose: float = 0.0,
    brightness: float = 0.0,
    padded_crop: int = 0,
    fixed_size: tuple[int, int] | None = None,
    fill: Sequence[int] = (0, 0, 0),
    colour: torch.nn.Module | None = None,
    resize: torch.nn.Module | None = None,
) -> v2.Transform:
    """Colours, resizing, flips, brightness, and removal of objects that were lost, in this order.

    Args:
        short_sides, long_side: pixels; see :class:`ResizeShortSide`.
        flip, vertical_flip, transpose: probabilities of mirroring left-right, top-bottom, along the diagonal.
        brightness: factors are drawn from 1 - brightness .. 1 + brightness.
        padded_crop: pixels; see :class:`PaddedCrop`.
        fixed_size: (height, width) every picture gets at last: what is larger is cropped at a random place, what is
            smaller is set at a random place on one colour. Objects cropped away are dropped and counted.
        fill: that colour, R, G, B.
        colour: done before everything else, such as :class:`~longtail.data.photometric.ColourAndBlur`.
        resize: done instead of :class:`ResizeShortSide`, such as
            :class:`~longtail.data.scale_jitter.LargeScaleJitter` or :func:`crop_or_not`.
    """
    steps: list[Any] = [] if colour is None else [colour]
    steps.append(ResizeShortSide(short_sides, long_side) if resize is None else resize)
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if vertical_flip:
        steps.append(v2.RandomVerticalFlip(vertical_flip))
    if transpose:
        steps.append(RandomTranspose(transpose))
    if brightness:
        steps.append(v2.ColorJitter(brightness=brightness))
    if padded_crop:
        steps.append(PaddedCrop(padded_crop))
    if fixed_size is not None:
        steps.append(FixedSize(fixed_size, fill=fill))
    steps.append(DropDegenerate())
    return v2.Compose(steps)


def crop_or_not(
    short_sides: Sequence[int],
    long_side: int,
    *,
    probability: float = 0.5,
    before: Sequence[int] = (400, 500, 600),
    crop: tuple[int, int] = (384, 600),
) -> v2.Transform:
    """DETR's resizing: either :class:`ResizeShortSide`; or to a short side of ``before``, then a crop, then that.

    Args:
        short_sides, long_side: pixels, of the last step.
        probability: of the crop.
        before: short sides before the crop, in pixels, without a limit on the long side.
        crop: range of the crop's height and of its width.
    """
    plain = ResizeShortSide(short_sides, long_side)
    first = ResizeShortSide(before, NO_LIMIT)
    cropped = v2.Compose([first, RandomSizeCrop(*crop), ResizeShortSide(short_sides, long_side)])
    return v2.RandomChoice([plain, cropped], p=[1 - probability, probability])
