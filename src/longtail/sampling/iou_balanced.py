"""IoU-balanced negatives of Libra R-CNN (journal version, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtail.sampling.random_regions import draw
from longtail.sampling.regions import LossOf, RegionSampler


def fill_evenly(capacity: Sequence[int], demand: int) -> list[int]:
    """Shares of ``demand`` for bins that hold ``capacity`` each: equal, the remainder to the last bins, and what a bin
    cannot give split again over those that still can.

    Args:
        capacity: candidates per bin.
        demand: how many are wanted, at most ``sum(capacity)`` are given.
    """
    taken = [0] * len(capacity)
    left = min(demand, sum(capacity))
    while left:
        able = [k for k, size in enumerate(capacity) if size > taken[k]]
        share = left // len(able)
        for k in able if share else able[-left:]:
            given = min(max(share, 1), capacity[k] - taken[k])
            taken[k] += given
            left -= given
    return taken


class IoUBalancedNegatives(RegionSampler):
    """Positives at random; negatives spread evenly over ``num_bins`` equal bins of IoU.

    The interval is [0, ``negative_iou``), candidates with IoU 0 included, the last bin closed. Every bin is asked for
    the same number, the remainder goes to the bins of highest IoU, and what a bin lacks is asked from the others in
    the same way. ``min(n, M)`` distinct negatives are returned for a demand of n among M candidates.

    Args:
        count: regions wanted per image.
        positive_fraction: at most this share of them is positive.
        num_bins: K; 1 is plain random sampling.
        negative_iou: the matcher's threshold below which a candidate is negative, in (0, 1].

    Raises:
        ValueError: arguments out of range.
    """

    def __init__(self, count: int, positive_fraction: float, *, num_bins: int = 3, negative_iou: float = 0.5) -> None:
        super().__init__(count, positive_fraction)
        if num_bins < 1 or not 0 < negative_iou <= 1:
            raise ValueError(f"num_bins must be >= 1 and negative_iou in (0, 1], got {num_bins} and {negative_iou}")
        self.num_bins = num_bins
        self.negative_iou = negative_iou

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
        negative = torch.where(matched_gt == -1)[0]
        wanted = self.count - positive.shape[0]
        if negative.shape[0] <= wanted:
            return positive, negative
        order = torch.randperm(negative.shape[0], generator=generator, device=negative.device)
        shuffled = negative[order]
        bins = (iou[shuffled] / self.negative_iou * self.num_bins).long().clamp(0, self.num_bins - 1)
        bins, by_bin = bins.sort(stable=True)
        sizes = torch.bincount(bins, minlength=self.num_bins)
        quota = torch.tensor(fill_evenly(sizes.tolist(), wanted), device=bins.device)  # the one count read back
        rank = torch.arange(bins.shape[0], device=bins.device) - (sizes.cumsum(0) - sizes)[bins]
        return positive, shuffled[by_bin[rank < quota[bins]]].sort().values
