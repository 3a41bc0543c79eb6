"""From a list of pictures to one padded batch, and the sources of a step's random draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: keeps the generator of stochastic losses apart from the generator of the first picture's region draws
_STEP_SALT = 0x5DEECE66D


class ImageBatcher(nn.Module):
    """Scales pictures to 0..1, normalises them, resizes them if asked, pads them with zeros and stacks them.

    Numerically this is torchvision's ``GeneralizedRCNNTransform``, which also takes uint8 and resizes only on request:
    in training the loader has already scaled the picture.

    Args:
        mean, std: per channel (R, G, B), of values in 0..1.
        short_side, long_side: pixels; the shorter side becomes ``short_side`` unless the longer one would exceed
            ``long_side``.
        size_divisible: height and width of the batch are padded to multiples of this.
        resize_in_losses: whether pictures and targets of ``losses()`` are resized too.
        channels_last: memory format of the batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        short_side: int = 800,
        long_side: int = 1333,
        size_divisible: int = 32,
        resize_in_losses: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if short_side < 1 or long_side < short_side or size_divisible < 1:
            raise ValueError(
                "short_side and size_divisible must be at least 1 and long_side at least short_side, got "
                f"{short_side}, {size_divisible} and {long_side}"
            )
        # not saved: they belong to the weights' description, and a checkpoint of torchvision has none
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.short_side = short_side
        self.long_side = long_side
        self.size_divisible = size_divisible
        self.resize_in_losses = resize_in_losses
        self.channels_last = channels_last

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None, *, resize: bool
    ) -> tuple[ImageList, list[dict[str, Any]] | None]:
        """Batch and, with ``targets``, shallow copies of them in the batch's pixels.

        Args:
            images: (3, H, W) each, uint8 or floating point in 0..1, RGB.
            targets: ``boxes`` (G, 4), ``masks`` (G, H, W) and ``proposals`` (P, 4) follow the picture if it is resized.
            resize: whether to resize.

        Returns:
            The batch with the (height, width) of every picture before padding, and the copies of the targets, each
            with the additional key ``input_size``, that same (height, width).
        """
        scaled = []
        copies: list[dict[str, Any]] | None = None if targets is None else [dict(target) for target in targets]
        for index, image in enumerate(images):
            picture = self._normalise(image)
            if resize:
                factor = self._resize_factor(image.shape[-2], image.shape[-1])
                if factor != 1.0:
                    picture = _interpolate(picture[None], factor, "bilinear")[0]
            scaled.append(picture)
            if copies is not None:
                size = (picture.shape[-2], picture.shape[-1])
                copies[index]["input_size"] = size
                if size != image.shape[-2:]:
                    _resize_target(copies[index], (image.shape[-2], image.shape[-1]), size)
        sizes = [(picture.shape[-2], picture.shape[-1]) for picture in scaled]
        return ImageList(self._stack(scaled, sizes), sizes), copies

    def _normalise(self, image: Tensor) -> Tensor:
        if image.dim() != 3:
            raise ValueError(f"a picture must have the shape (3, H, W), got {tuple(image.shape)}")
        if image.is_floating_point():
            return (image.to(self.mean.dtype) - self.mean).div_(self.std)
        return image.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)

    def _resize_factor(self, height: int, width: int) -> float:
        return min(self.short_side / min(height, width), self.long_side / max(height, width))

    def _stack(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        step = self.size_divisible
        height = -(-max(size[0] for size in sizes) // step) * step
        width = -(-max(size[1] for size in sizes) // step) * step
        batch = images[0].new_zeros((len(images), images[0].shape[0], height, width))
        if self.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]].copy_(image)
        return batch


def _interpolate(image: Tensor, factor: float, mode: str) -> Tensor:
    align = False if mode == "bilinear" else None
    return F.interpolate(image, scale_factor=factor, mode=mode, recompute_scale_factor=True, align_corners=align)


def _resize_target(target: dict[str, Any], old: tuple[int, int], new: tuple[int, int]) -> None:
    for name in ("boxes", "proposals"):
        if name in target:
            target[name] = resize_boxes(target[name], old, new)
    if "masks" in target:
        masks = target["masks"]
        target["masks"] = F.interpolate(masks[:, None].float(), size=new, mode="nearest")[:, 0].to(masks.dtype)


def resize_boxes(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Boxes (N, 4), corners in pixels of a picture of (height, width) ``old``, in pixels of the same picture at
    ``new``."""
    if old == new:
        return boxes
    horizontal, vertical = new[1] / old[1], new[0] / old[0]
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack((x1 * horizontal, y1 * vertical, x2 * horizontal, y2 * vertical), dim=1)


def image_generators(targets: Sequence[Mapping[str, Any]], device: torch.device) -> list[torch.Generator | None]:
    """One source of draws per picture, seeded with its target's ``draw_seed``; None where there is no seed.

    What is drawn for a picture depends on its seed only, not on its neighbours in the batch.
    """
    return [_generator(target.get("draw_seed"), device) for target in targets]


def step_generator(targets: Sequence[Mapping[str, Any]], device: torch.device) -> torch.Generator | None:
    """The source of the draws that belong to the whole batch (stochastic losses), from the first picture's seed."""
    seed = targets[0].get("draw_seed") if targets else None
    return _generator(None if seed is None else int(seed) ^ _STEP_SALT, device)


def _generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(int(seed))
