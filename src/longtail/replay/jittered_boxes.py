"""Boxes around objects (LOCE, Feng et al., ICCV 2021, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

PATTERNS = 16
REACH = 1 / 6  # share of the object's side that an edge moves by at most


def jitter_boxes(boxes: Tensor, noise: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
    """16 boxes for every object: its four edges moved in all combinations of directions.

    Pattern k moves x1, y1, x2, y2 to lower values where the binary digits of k, most significant first, are 0, to
    higher ones where they are 1, each by ``noise / 6`` times the object's width or height. The IoU with the object is
    0.73 on average and at least 4 / 9; nothing is filtered.

    Args:
        boxes: (G, 4) corners in pixels.
        noise: (4, 16) in [0, 1), shared by all objects, as released, or (G, 4, 16).
        size: (height, width) of the picture; boxes are cut off at its last row and column of pixels, at
            ``height - 1`` and ``width - 1``. An object inside the last row or column leaves boxes without area. None =
            not cut off.

    Returns:
        (16 G, 4), all patterns of the first object, then of the second, ...
    """
    digit = torch.arange(PATTERNS, device=boxes.device) >> torch.arange(3, -1, -1, device=boxes.device)[:, None]
    sign = ((digit & 1) * 2 - 1).to(boxes.dtype)  # (4, 16)
    side = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)  # width, height, width, height
    moved = boxes[:, :, None] + REACH * sign * noise.to(boxes.dtype) * side[:, :, None]
    jittered = moved.transpose(1, 2).reshape(-1, 4)
    if size is None:
        return jittered
    height, width = size
    x, y = jittered[:, 0::2].clamp(0, width - 1), jittered[:, 1::2].clamp(0, height - 1)
    return torch.stack((x, y), dim=2).flatten(1)
