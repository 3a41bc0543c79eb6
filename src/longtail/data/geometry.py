"""Pictures, boxes and masks moved together, pixel by pixel.

A sample is what a :class:`~longtail.data.dataset.DetectionDataset` hands its transform: ``boxes`` (G, 4), ``labels``
(G,), perhaps ``masks`` (G, H, W), and more tensors whose first axis counts objects; and perhaps ``proposals`` (P, 4),
boxes that move like those of the objects and belong to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

Sample = dict[str, Any]
PROPOSALS = "proposals"


def uniform(low: float, high: float) -> float:
    """A number drawn from [low, high)."""
    return low + (high - low) * float(torch.rand((), dtype=torch.float64))


def integer(low: int, high: int) -> int:
    """A whole number drawn from low..high, both included."""
    return int(torch.randint(low, high + 1, ()))


def take(value: Any, kept: Tensor) -> Any:
    """The objects that ``kept`` (G,) marks, of boxes, labels or masks; what it is stays."""
    chosen = value.as_subclass(Tensor)[kept]
    return tv_tensors.wrap(chosen, like=value) if isinstance(value, tv_tensors.TVTensor) else chosen


def take_objects(sample: Sample, kept: Tensor) -> Sample:
    """The sample with the objects that ``kept`` (G,) marks alone; proposals stay."""
    return {name: value if name == PROPOSALS else take(value, kept) for name, value in sample.items()}


def as_boxes(corners: Tensor, height: int, width: int) -> tv_tensors.BoundingBoxes:
    """Corners (N, 4) in pixels as boxes of a picture of that size."""
    return tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width))


def with_area(corners: Tensor) -> Tensor:
    """(N,) which boxes (N, 4), corners, have an area."""
    return (corners[:, 2:] > corners[:, :2]).all(dim=1)


def mask_boxes(masks: Tensor) -> Tensor:
    """Bounds (N, 4) of masks (N, H, W), float32 corners in pixels; zeros where a mask is empty."""
    across, down = masks.amax(dim=1) > 0, masks.amax(dim=2) > 0
    height, width = masks.shape[1:]
    corners = torch.stack(
        (
            across.int().argmax(dim=1),
            down.int().argmax(dim=1),
            width - across.flip(1).int().argmax(dim=1),
            height - down.flip(1).int().argmax(dim=1),
        ),
        dim=1,
    )
    return (corners * across.any(dim=1)[:, None]).float()


def areas(masks: Tensor) -> Tensor:
    """Pixels (N,) int64 of masks (N, H, W) of 0 and 1."""
    return torch.tensor(
        [np.count_nonzero(mask) for mask in masks.contiguous().numpy().view(np.bool_)], dtype=torch.int64
    )


def sampled(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The given rows and columns of pictures or masks (N, H, W): (N, rows, columns). NumPy is quicker at it."""
    return torch.from_numpy(values.numpy().take(rows.numpy(), axis=1).take(columns.numpy(), axis=2))


def nearest_places(old: int, new: int, start: int, stop: int) -> Tensor:
    """Where the pixels start..stop-1 of a side come from that was resized from ``old`` to ``new`` pixels: the old pixel
    that holds the new one's centre."""
    return ((2 * torch.arange(start, stop) + 1) * old) // (2 * new)


def resize_picture(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (3, H, W) uint8 at another (height, width), bilinear with antialiasing.

    PyTorch's uint8 kernel takes a picture one pixel wide for one stored channels last, and gives wrong values or fails;
    such pictures are resized as floating point numbers.
    """
    if size[1] == 1:
        thin: Tensor = F.resize(image.float(), list(size), antialias=True)
        return thin.round().clamp(0, 255).to(image.dtype)
    resized: Tensor = F.resize(image, list(size), antialias=True)
    return resized


def resized_window(
    image: Tensor, sample: Sample, size: tuple[int, int], window: tuple[int, int, int, int], *, nearest: bool = False
) -> tuple[Tensor, Sample]:
    """Resizes and then cuts a window out, without computing masks that lie outside it.

    Boxes of objects that the window cuts are the bounds of their masks, where there are masks, and are clipped
    otherwise. Objects without area, and those whose mask has lost its last pixel, are removed.

    Args:
        image: (3, H, W) uint8.
        sample: its objects.
        size: new (height, width).
        window: top, left, height, width in the resized picture, inside it.
        nearest: take the nearest pixel instead of interpolating the picture; masks always do.
    """
    top, left, height, width = window
    old = (image.shape[-2], image.shape[-1])
    rows = nearest_places(old[0], size[0], top, top + height)
    columns = nearest_places(old[1], size[1], left, left + width)
    plain = image.as_subclass(Tensor)
    if nearest or size == old:
        picture = sampled(plain, rows, columns)
    else:
        resized = resize_picture(plain, size)
        picture = resized[:, top : top + height, left : left + width].contiguous()

    factors = torch.tensor([size[1] / old[1], size[0] / old[0]]).repeat(2)
    moved = sample["boxes"].as_subclass(Tensor) * factors - torch.tensor([left, top, left, top])
    boxes = clipped(moved, height, width)
    kept = with_area(boxes)
    result = dict(sample)
    if PROPOSALS in sample:
        shift = torch.tensor([left, top, left, top])
        proposals = clipped(sample[PROPOSALS].as_subclass(Tensor) * factors - shift, height, width)
        result[PROPOSALS] = as_boxes(proposals, height, width)  # those without area go in the last step
    if "masks" in sample:
        before = sample["masks"].as_subclass(Tensor)
        masks = sampled(before, rows, columns)
        cut = (boxes != moved).any(dim=1)
        boxes = torch.where(cut[:, None], mask_boxes(masks), boxes)
        # an annotation whose mask never had a pixel keeps its box
        kept &= (areas(masks) > 0) | (~cut & (areas(before) == 0))
        result["masks"] = tv_tensors.Mask(masks)
    result["boxes"] = as_boxes(boxes, height, width)
    if not bool(kept.all()):
        result = take_objects(result, kept)
    return tv_tensors.Image(picture), result


def clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (N, 4), corners, inside a picture."""
    limit = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def filled_up(
    image: Tensor, sample: Sample, size: tuple[int, int], place: tuple[int, int], fill: Sequence[int]
) -> tuple[Tensor, Sample]:
    """Sets a picture on a larger one of one colour.

    Args:
        image: (3, H, W) uint8.
        sample: its objects.
        size: (height, width) of the larger one.
        place: (top, left) of the picture on it.
        fill: R, G, B, each 0..255.
    """
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image, sample
    top, left = place
    canvas = torch.tensor(fill, dtype=image.dtype)[:, None, None].repeat(1, *size)
    canvas[:, top : top + height, left : left + width] = image.as_subclass(Tensor)
    result = dict(sample)
    for name in ("boxes", PROPOSALS):
        if name in sample:
            result[name] = as_boxes(sample[name].as_subclass(Tensor) + torch.tensor([left, top, left, top]), *size)
    if "masks" in sample:
        masks = torch.zeros((len(sample["masks"]), *size), dtype=sample["masks"].dtype)
        masks[:, top : top + height, left : left + width] = sample["masks"].as_subclass(Tensor)
        result["masks"] = tv_tensors.Mask(masks)
    return tv_tensors.Image(canvas), result
