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

    Where there are too few negatives the image gives fewer than ``count`` regions; positives never fill up.
    """

    def __call__(
        self,
        iou: Tensor,
        matched_gt: Tensor,
        gt_labels: Tensor,
        generator: torch.Generator | None,
        loss_of: LossOf | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`RegionSampler.__call__`."""
        positive = draw(torch.where(matched_gt >= 0)[0], int(self.count * self.positive_fraction), generator)
        negative = draw(torch.where(matched_gt == -1)[0], self.count - positive.shape[0], generator)
        return positive, negative
