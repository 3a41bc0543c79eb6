"""Regions drawn uniformly (Ren et al., Faster R-CNN, 2015)."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.sampling.regions import LossOf, RegionSampler


def draw(candidates: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """At most ``count`` of ``candidates`` (M,), uniformly and without replacement, in ascending order."""
    if candidates.shape[0] <= count:
        return candidates
    order = torch.randperm(candidates.shape[0], generator=generator, device=candidates.device)
    return candidates[order[:count].sort().values]


class RandomRegions(RegionSampler):
    """At most ``int(count * positive_fraction)`` positives at random, then negatives at random up to ``count``.

    Where there are too few negatives the image gives fewer than ``count`` regions; positives never fill up. Samplers
    that draw positives or negatives in another way replace :meth:`positives` or :meth:`negatives`.

    Args:
        count: regions wanted per image, at least 1.
        positive_fraction: at most this share of them is positive, in (0, 1].
        negatives_per_positive: at most this many negatives for every positive, where one positive counts even if there
            is none; None = no bound. 5 for the anchors of Libra R-CNN.
    """

    def __init__(self, count: int, positive_fraction: float, *, negatives_per_positive: float | None = None) -> None:
        super().__init__(count, positive_fraction)
        if negatives_per_positive is not None and negatives_per_positive <= 0:
            raise ValueError(f"negatives_per_positive must be above 0, got {negatives_per_positive}")
        self.negatives_per_positive = negatives_per_positive

    def __call__(
        self,
        iou: Tensor,
        matched_gt: Tensor,
        gt_labels: Tensor,
        generator: torch.Generator | None,
        loss_of: LossOf | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`RegionSampler.__call__`."""
        wanted = int(self.count * self.positive_fraction)
        positive = self.positives(torch.where(matched_gt >= 0)[0], wanted, matched_gt, gt_labels, generator)
        wanted = self.count - positive.shape[0]
        if self.negatives_per_positive is not None:
            wanted = min(wanted, int(self.negatives_per_positive * max(positive.shape[0], 1)))
        return positive, self.negatives(torch.where(matched_gt == -1)[0], wanted, iou, generator)

    def positives(
        self,
        candidates: Tensor,
        wanted: int,
        matched_gt: Tensor,
        gt_labels: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """At most ``wanted`` of the positives ``candidates`` (M,), in ascending order; other arguments as in
        :meth:`RegionSampler.__call__`."""
        return draw(candidates, wanted, generator)

    def negatives(self, candidates: Tensor, wanted: int, iou: Tensor, generator: torch.Generator | None) -> Tensor:
        """At most ``wanted`` of the negatives ``candidates`` (M,), in ascending order; ``iou`` is that of all
        candidates."""
        return draw(candidates, wanted, generator)
