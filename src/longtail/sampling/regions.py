"""The contract of region samplers (seam 2): which candidate boxes of one image are learnt from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

LossOf = Callable[[Tensor], Tensor]


class RegionSampler(ABC):
    """Chooses positives and negatives among the candidates of one image.

    Args:
        count: regions wanted per image, at least 1.
        positive_fraction: at most this share of them is positive, in (0, 1].

    Attributes:
        needs_loss: whether :meth:`__call__` must be given ``loss_of``.
    """

    needs_loss: bool = False

    def __init__(self, count: int, positive_fraction: float) -> None:
        if count < 1 or not 0 < positive_fraction <= 1:
            raise ValueError(
                f"count must be at least 1 and positive_fraction in (0, 1], got {count} and {positive_fraction}"
            )
        self.count = count
        self.positive_fraction = positive_fraction

    @abstractmethod
    def __call__(
        self,
        iou: Tensor,
        matched_gt: Tensor,
        gt_labels: Tensor,
        generator: torch.Generator | None,
        loss_of: LossOf | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Indices of positives and of negatives, each distinct and in ascending order.

        Args:
            iou: (N,) largest IoU of every candidate with any object, 0 where there is none.
            matched_gt: (N,) index of the matched object; -1 = negative, -2 = neither.
            gt_labels: (G,) class of every object.
            generator: source of every draw, on the candidates' device; None = PyTorch's own.
            loss_of: per-candidate loss of the given indices, without gradient (hard example mining).
        """
