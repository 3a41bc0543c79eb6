"""IoU-balanced negatives of Libra R-CNN (journal version, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from longtail.sampling.random_regions import RandomRegions, draw

Interval = Literal["neg_range", "max_iou"]
ZeroIoU = Literal["include", "last_resort"]
Fill = Literal["even", "uniform"]


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


class IoUBalancedNegatives(RandomRegions):
    """Positives at random; negatives spread evenly over ``num_bins`` equal bins of IoU.

    The defaults are the paper's text: the interval is [0, ``negative_iou``), candidates with IoU 0 included, the last
    bin closed. Every bin is asked for the same number, the remainder goes to the bins of highest IoU, and what a bin
    lacks is asked from the others in the same way. ``min(n, M)`` distinct negatives are returned for a demand of n
    among M candidates. :meth:`released` makes the sampler of the authors' code.

    Args:
        count: regions wanted per image.
        positive_fraction: at most this share of them is positive.
        num_bins: K; 1 is plain random sampling.
        negative_iou: the matcher's threshold below which a candidate is negative, in (0, 1].
        interval: where the bins end: ``"neg_range"`` at ``negative_iou``, ``"max_iou"`` at the largest IoU of all
            candidates, positives and appended objects included. With the latter K = 2 is plain random sampling, and the
            last of three bins is empty, as soon as objects are appended.
        zero_iou: ``"last_resort"`` takes candidates that touch no object only where the others do not suffice.
        fill: ``"uniform"`` asks ``int(n / K)`` of every bin and fills up with one uniform draw from all bins.
        floor_iou: where above 0, the bins begin there, and candidates below it make up a floor set of their own, from
            which only ``floor_fraction`` of the negatives come (more only where the others do not suffice).
        floor_fraction: that share, in [0, 1].
        negatives_per_positive: see :class:`RandomRegions`.

    Raises:
        ValueError: arguments out of range.
    """

    def __init__(
        self,
        count: int,
        positive_fraction: float,
        *,
        num_bins: int = 3,
        negative_iou: float = 0.5,
        interval: Interval = "neg_range",
        zero_iou: ZeroIoU = "include",
        fill: Fill = "even",
        floor_iou: float = 0.0,
        floor_fraction: float = 0.0,
        negatives_per_positive: float | None = None,
    ) -> None:
        super().__init__(count, positive_fraction, negatives_per_positive=negatives_per_positive)
        if num_bins < 1 or not 0 < negative_iou <= 1:
            raise ValueError(f"num_bins must be >= 1 and negative_iou in (0, 1], got {num_bins} and {negative_iou}")
        if not 0 <= floor_iou < negative_iou or not 0 <= floor_fraction <= 1:
            raise ValueError(
                f"floor_iou must be in [0, negative_iou) and floor_fraction in [0, 1], got {floor_iou} and "
                f"{floor_fraction}"
            )
        for value, known in ((interval, Interval), (zero_iou, ZeroIoU), (fill, Fill)):
            if value not in known.__args__:  # type: ignore[attr-defined]
                raise ValueError(f"{value!r} is not one of {known.__args__}")  # type: ignore[attr-defined]
        self.num_bins = num_bins
        self.negative_iou = negative_iou
        self.interval = interval
        self.zero_iou = zero_iou
        self.fill = fill
        self.floor_iou = floor_iou
        self.floor_fraction = floor_fraction

    @classmethod
    def released(
        cls,
        count: int,
        positive_fraction: float,
        *,
        num_bins: int = 3,
        negative_iou: float = 0.5,
        first_call: bool = False,
    ) -> Self:
        """As in the authors' code and mmdet, whose sampler changes after its first call: from then on candidates with
        IoU 0 are a last resort. ``first_call`` makes the one before that."""
        return cls(
            count,
            positive_fraction,
            num_bins=num_bins,
            negative_iou=negative_iou,
            interval="max_iou",
            zero_iou="include" if first_call else "last_resort",
            fill="uniform",
        )

    def negatives(self, candidates: Tensor, wanted: int, iou: Tensor, generator: torch.Generator | None) -> Tensor:
        """See :meth:`RandomRegions.negatives`."""
        if candidates.shape[0] <= wanted:
            return candidates
        order = torch.randperm(candidates.shape[0], generator=generator, device=candidates.device)
        shuffled = candidates[order]
        bins = self._bins(iou[shuffled], iou)
        bins_sorted, by_bin = bins.sort(stable=True)
        sizes = torch.bincount(bins, minlength=self.num_bins + 1)
        quota, more = self._quota(sizes.tolist(), wanted)  # the one count read back
        rank = torch.arange(bins.shape[0], device=bins.device) - (sizes.cumsum(0) - sizes)[bins_sorted]
        taken = torch.zeros_like(bins, dtype=torch.bool)
        taken[by_bin] = rank < torch.tensor(quota, device=bins.device)[bins_sorted]
        if more:  # drawn anew: what a bin has left comes late in the order of the first draw
            taken[draw(torch.where(~taken & (bins < self.num_bins))[0], more, generator)] = True
        return shuffled[taken].sort().values

    def _bins(self, iou: Tensor, all_iou: Tensor) -> Tensor:
        """(M,) bin of every negative: 0..K-1 by IoU, K = the floor set."""
        top = all_iou.max() if self.interval == "max_iou" else torch.as_tensor(self.negative_iou, device=iou.device)
        width = (top - self.floor_iou).clamp(min=1e-12)
        bins = ((iou - self.floor_iou) / width * self.num_bins).long().clamp(0, self.num_bins - 1)
        if self.floor_iou > 0:
            return bins.masked_fill(iou < self.floor_iou, self.num_bins)
        return bins.masked_fill(iou == 0, self.num_bins) if self.zero_iou == "last_resort" else bins

    def _quota(self, sizes: Sequence[int], wanted: int) -> tuple[list[int], int]:
        """How many of every bin and, last, of the floor set; and how many more, uniformly, of what the bins have left.

        Args:
            sizes: candidates per bin and in the floor set, more than ``wanted`` together.
            wanted: how many are asked for.
        """
        inside, floor = sizes[: self.num_bins], sizes[self.num_bins]
        share = int(wanted * (1 - self.floor_fraction))
        of_floor = min(floor, wanted - min(share, sum(inside)))
        of_bins = wanted - of_floor
        if self.fill == "even":
            return [*fill_evenly(inside, of_bins), of_floor], 0
        each = share // self.num_bins if self.num_bins > 1 else 0
        quota = [min(size, each) for size in inside]
        return [*quota, of_floor], of_bins - sum(quota)
