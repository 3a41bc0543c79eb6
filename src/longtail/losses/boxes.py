"""Box losses that know nothing of the class: smooth L1 and L1 on encoded offsets, generalised IoU on corners."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import BoxLoss
from longtail.losses.cells import full_precision


class SmoothL1Loss(BoxLoss):
    """``d^2 / (2 beta)`` where ``|d| < beta``, else ``|d| - beta / 2``, summed over the four offsets (Fast R-CNN).

    Args:
        beta: where the parabola ends, >= 0, in units of the encoded offsets. 1, the default, is the published value;
            0 is L1; torchvision's region heads use 1/9.

    Shapes:
        predicted and target (P, 4), encoded offsets (dx, dy, dw, dh). Row losses (P,), in float32 or float64, >= 0.

    Raises:
        ValueError: ``beta`` below 0.
    """

    def __init__(self, *, beta: float = 1.0) -> None:
        super().__init__()
        if beta < 0:
            raise ValueError(f"beta must be >= 0, got {beta}")
        self.beta = beta

    def row_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        rows = F.smooth_l1_loss(full_precision(predicted), full_precision(target), reduction="none", beta=self.beta)
        return rows.sum(dim=1)


class L1Loss(BoxLoss):
    """``|d|`` summed over the four offsets: the box loss of RIO and LOCE.

    Shapes:
        predicted and target (P, 4), encoded offsets (dx, dy, dw, dh). Row losses (P,), in float32 or float64, >= 0.
    """

    def row_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        return (full_precision(predicted) - full_precision(target)).abs().sum(dim=1)


class GIoULoss(BoxLoss):
    """``1 - GIoU``, with ``GIoU = I / U - (E - U) / E`` (Rezatofighi et al., CVPR 2019).

    I, U and E are the areas of the intersection, the union and the smallest enclosing box.

    Args:
        eps: added to both denominators, > 0, in square pixels; two boxes without area then have loss 1.

    Shapes:
        predicted and target (P, 4), corners x1, y1, x2, y2 in pixels with x2 >= x1 and y2 >= y1. Row losses (P,), in
        float32 or float64, in [0, 2].

    Raises:
        ValueError: ``eps`` not above 0.
    """

    space = "boxes"

    def __init__(self, *, eps: float = 1e-7) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        self.eps = eps

    def row_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        predicted, target = full_precision(predicted), full_precision(target)
        low, high = predicted[:, :2], predicted[:, 2:]
        target_low, target_high = target[:, :2], target[:, 2:]
        inner = _area((high.minimum(target_high) - low.maximum(target_low)).clamp(min=0))
        enclosing = _area(high.maximum(target_high) - low.minimum(target_low))
        union = _area(high - low) + _area(target_high - target_low) - inner
        giou = inner / (union + self.eps) - (enclosing - union) / (enclosing + self.eps)
        return 1 - giou


def _area(size: Tensor) -> Tensor:
    """Width times height, (P,) from (P, 2)."""
    return size[:, 0] * size[:, 1]
