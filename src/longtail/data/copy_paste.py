"""Class-aware copy-paste: objects of other pictures, rare classes first, are pasted onto a picture.

Pasting as in Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR
2021, arXiv 2012.07177; which objects are pasted depends on how frequent their classes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from longtail.data.geometry import (
    Sample,
    areas,
    integer,
    mask_boxes,
    nearest_places,
    resize_picture,
    sampled,
    take,
    uniform,
)
from longtail.data.table import AnnotationTable
from longtail.schema.errors import DataError


@dataclass(frozen=True, eq=False)
class DonorIndex:
    """Objects that can be pasted, by class. Arrays only: processes that are forked share them.

    Attributes:
        rows: (D,) rows of the annotation table, sorted by class.
        start: (C + 1,) those of class c are ``rows[start[c]:start[c + 1]]``.
        probability: (C,) of every class, adds up to 1; 0 for classes without donors.
    """

    rows: NDArray[np.int32]
    start: NDArray[np.int64]
    probability: NDArray[np.float64]

    @classmethod
    def from_table(cls, table: AnnotationTable, *, power: float) -> DonorIndex:
        """Every object with an area that is neither crowd nor ignored is a donor.

        Args:
            table: annotations.
            power: a class is drawn with the probability n ** -power, n the number of its pictures, up to a constant.

        Raises:
            DataError: objects without a mask, or no objects at all.
        """
        usable = ~(np.asarray(table.iscrowd) | np.asarray(table.ignore))
        require_masks(table, usable)
        usable &= (np.asarray(table.boxes_xywh)[:, 2:] > 0).all(axis=1)
        rows = np.flatnonzero(usable).astype(np.int32)
        if not len(rows):
            raise DataError(f"{table.source} has no object that could be pasted; set images.copy_paste=none")
        labels = np.asarray(table.label)[rows]
        counts = np.bincount(labels, minlength=table.num_classes)
        pictures = table.statistics().image_counts
        weights = np.zeros(table.num_classes)
        weights[counts > 0] = pictures[counts > 0].astype(np.float64) ** -power
        return cls(
            rows=rows[np.argsort(labels, kind="stable")],
            start=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            probability=weights / weights.sum(),
        )

    def draw(self) -> int:
        """A row of the annotation table: a class by its probability, then one of its objects, each alike."""
        ends = np.cumsum(self.probability)
        place = int(np.searchsorted(ends, uniform(0.0, float(ends[-1])), side="right"))
        return int(self.rows[integer(int(self.start[place]), int(self.start[place + 1]) - 1)])


def require_masks(table: AnnotationTable, rows: NDArray[np.bool_]) -> None:
    """Refuses annotations without masks.

    Raises:
        DataError: with ids.
    """
    lacking = np.flatnonzero(rows if table.masks is None else rows & (np.asarray(table.masks.kind) == 0))
    if len(lacking):
        ids = ", ".join(map(repr, table.annotation_ids[lacking[:5]].tolist()))
        raise DataError(
            f"{table.source}: copy-paste needs a mask for every object; {len(lacking)} of {int(rows.sum())} have none "
            f"(annotations {ids}{', ...' if len(lacking) > 5 else ''}); add segmentations or set images.copy_paste=none"
        )


@dataclass(frozen=True, eq=False)
class CutOut:
    """One object of another picture.

    Attributes:
        pixels: (3, h, w) uint8, the bounds of its mask.
        mask: (h, w) uint8 of 0 and 1; (0, 0) for an object whose mask covers no pixel.
        label: its class.
        frame: (height, width) of the picture it comes from.
    """

    pixels: Tensor
    mask: Tensor
    label: int
    frame: tuple[int, int]

    @classmethod
    def of(cls, picture: Tensor, mask: Tensor, label: int) -> CutOut:
        """Cuts the object out of its picture (3, H, W) by its mask (H, W)."""
        left, top, right, bottom = (int(side) for side in mask_boxes(mask[None])[0].tolist())
        window = (slice(top, bottom), slice(left, right))
        frame = (picture.shape[-2], picture.shape[-1])
        return cls(picture[:, window[0], window[1]].contiguous(), mask[window].contiguous(), label, frame)


class CopyPaste:
    """Pastes objects onto a picture, one after the other, each at a random place.

    An object is resized, mirrored or not, and put where it lies wholly inside the picture if it fits, and where its
    bounds hold the whole picture if it does not. What it covers is cut from the masks of the objects below; their boxes
    become the bounds of what is left, and those with too little left are removed.

    Args:
        donors: what can be pasted.
        probability: that anything is pasted.
        max_objects: 1 to this many objects are, each number alike.
        scale: range of an object's scale; at 1 its own picture would just fit into this one.
        flip: probability that an object is mirrored left-right.
        min_visible: objects are removed when a smaller share of their mask is left, or nothing.
        blur: width of the Gaussian that softens an object's edge in the picture, in pixels; masks stay sharp.
        nearest: take the nearest pixel instead of interpolating.
    """

    def __init__(
        self,
        donors: DonorIndex,
        *,
        probability: float = 0.5,
        max_objects: int = 3,
        scale: tuple[float, float] = (0.8, 1.25),
        flip: float = 0.5,
        min_visible: float = 0.1,
        blur: float = 0.0,
        nearest: bool = False,
    ) -> None:
        if max_objects < 1 or not 0 < scale[0] <= scale[1] or blur < 0:
            raise ValueError(f"max_objects {max_objects}, scale {list(scale)} or blur {blur} is out of range")
        self.donors = donors
        self.probability = probability
        self.max_objects = max_objects
        self.scale = scale
        self.flip = flip
        self.min_visible = min_visible
        self.blur = blur
        self.nearest = nearest

    def draw(self) -> list[int]:
        """Rows of the annotation table of the objects to paste onto a picture; often none."""
        if float(torch.rand(())) >= self.probability:
            return []
        return [self.donors.draw() for _ in range(integer(1, self.max_objects))]

    def paste(self, image: Tensor, sample: Sample, objects: Sequence[CutOut]) -> tuple[Tensor, Sample]:
        """Pastes ``objects`` in order.

        Args:
            image: (3, H, W) uint8; it is not changed.
            sample: its objects, with masks.

        Returns:
            The picture, and its objects followed by the pasted ones, without those that were covered. ``pasted`` (G,)
            says which are which.
        """
        height, width = image.shape[-2:]
        picture = image.as_subclass(Tensor).clone()
        own = len(sample["labels"])
        masks = torch.zeros((own + len(objects), height, width), dtype=torch.uint8)
        masks[:own] = sample["masks"].as_subclass(Tensor)
        labels = torch.cat((sample["labels"], torch.tensor([cut.label for cut in objects], dtype=torch.int64)))
        whole = areas(masks)
        for row, cut in enumerate(objects, start=own):
            self._paste_one(picture, masks, row, cut)
            whole[row] = areas(masks[row : row + 1])[0]
        left = areas(masks)

        new = torch.arange(len(labels)) >= own
        boxes = torch.cat((sample["boxes"].as_subclass(Tensor), torch.zeros(len(objects), 4)))
        boxes = torch.where((new | (left < whole))[:, None], mask_boxes(masks), boxes)
        # an annotation whose mask never had a pixel keeps its box
        kept = ((left > 0) & (left >= self.min_visible * whole)) | (~new & (whole == 0))
        result: Sample = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": labels,
            "masks": tv_tensors.Mask(masks),
            "pasted": new,
        }
        if not bool(kept.all()):
            result = {name: take(value, kept) for name, value in result.items()}
        return tv_tensors.Image(picture), result

    def _paste_one(self, picture: Tensor, masks: Tensor, row: int, cut: CutOut) -> None:
        """Changes ``picture`` and ``masks`` in place; the object's own mask is ``masks[row]``."""
        height, width = picture.shape[-2:]
        factor = min(height / cut.frame[0], width / cut.frame[1]) * uniform(*self.scale)
        mirrored = float(torch.rand(())) < self.flip
        if not cut.mask.numel():
            return
        pixels, mask = resized(cut.pixels, cut.mask, factor, nearest=self.nearest)
        if mirrored:
            pixels, mask = pixels.flip(2), mask.flip(1)
        top, left = (integer(min(0, spare), max(0, spare)) for spare in (height - mask.shape[0], width - mask.shape[1]))
        (y, v), (x, u) = overlap(top, mask.shape[0], height), overlap(left, mask.shape[1], width)
        masks[:row, y, x] *= 1 - mask[v, u]
        masks[row, y, x] = mask[v, u]
        if not self.blur:
            picture[:, y, x] = torch.where(mask[v, u] > 0, pixels[:, v, u], picture[:, y, x])
            return
        margin = ceil(3 * self.blur)
        pixels, share = softened(pixels, mask, self.blur, margin)
        y, v = overlap(top - margin, mask.shape[0] + 2 * margin, height)
        x, u = overlap(left - margin, mask.shape[1] + 2 * margin, width)
        below = picture[:, y, x].float()
        picture[:, y, x] = (below + share[v, u] * (pixels[:, v, u] - below)).round().to(picture.dtype)


def resized(pixels: Tensor, mask: Tensor, factor: float, *, nearest: bool) -> tuple[Tensor, Tensor]:
    """A cut-out (3, h, w) and its mask (h, w), resized."""
    height, width = mask.shape
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    if size == (height, width):
        return pixels, mask
    rows, columns = nearest_places(height, size[0], 0, size[0]), nearest_places(width, size[1], 0, size[1])
    if nearest:
        larger = sampled(pixels, rows, columns)
    else:
        larger = resize_picture(pixels, size)
    return larger, sampled(mask[None], rows, columns)[0]


def softened(pixels: Tensor, mask: Tensor, sigma: float, margin: int) -> tuple[Tensor, Tensor]:
    """A cut-out (3, h, w) and its blurred mask, 0..1, both ``margin`` pixels larger on each side and float32."""
    frame = (margin, margin, margin, margin)
    # twice the margin: the blur reflects at its edge, and must find nothing of the object there
    around = torch.nn.functional.pad(mask[None].float(), tuple(2 * side for side in frame))
    blurred: Tensor = F.gaussian_blur(around, kernel_size=[2 * margin + 1] * 2, sigma=[sigma, sigma])[0]
    share = blurred[margin:-margin, margin:-margin]
    return torch.nn.functional.pad(pixels.float(), frame, mode="replicate"), share


def overlap(start: int, length: int, side: int) -> tuple[slice, slice]:
    """The part of start..start+length inside 0..side, as a slice of the side and as one of the length."""
    first = max(start, 0)
    last = max(min(start + length, side), first)
    return slice(first, last), slice(first - start, last - start)
