"""Positives balanced over objects, and over classes, of Libra R-CNN (journal version, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.sampling.random_regions import RandomRegions


def rounds(groups: Tensor, num_groups: int, generator: torch.Generator | None) -> Tensor:
    """Order of items in which groups take turns, (M,) indices: the first of every group, then the second of every
    group that has one, and so on. Any beginning of it is water-filling: no group has more than one item more than
    another that could still give. Within a group items keep their order; the groups' order within a round is drawn.

    Args:
        groups: (M,) int64 in 0..num_groups-1.
        num_groups: groups, empty ones included.
        generator: source of the draw, on the device of ``groups``.
    """
    by_group = groups.sort(stable=True)
    sizes = torch.bincount(groups, minlength=num_groups)
    turn = torch.empty_like(groups)
    turn[by_group.indices] = (
        torch.arange(groups.shape[0], device=groups.device) - (sizes.cumsum(0) - sizes)[by_group.values]
    )
    place = torch.randperm(num_groups, generator=generator, device=groups.device)
    return (turn * num_groups + place[groups]).argsort(stable=True)


class InstanceBalancedPositives(RandomRegions):
    """As many positives of every object as possible ("Pos Balance"); negatives at random or by another sampler.

    With c_g positives matched with object g and a demand of n: ``min(c_g, q)`` of each, where q is as large as n
    allows, and one more of randomly chosen objects that have more, n in all (the authors' code gives fewer, because
    it draws some twice).

    Args:
        count: regions wanted per image.
        positive_fraction: at most this share of them is positive.
        negatives: whose :meth:`RandomRegions.negatives` chooses the negatives, and whose bound on their number holds;
            None = at random.
    """

    def __init__(self, count: int, positive_fraction: float, *, negatives: RandomRegions | None = None) -> None:
        bound = None if negatives is None else negatives.negatives_per_positive
        super().__init__(count, positive_fraction, negatives_per_positive=bound)
        self.negative_sampler = negatives

    def negatives(self, candidates: Tensor, wanted: int, iou: Tensor, generator: torch.Generator | None) -> Tensor:
        """See :meth:`RandomRegions.negatives`."""
        if self.negative_sampler is None:
            return super().negatives(candidates, wanted, iou, generator)
        return self.negative_sampler.negatives(candidates, wanted, iou, generator)

    def positives(
        self,
        candidates: Tensor,
        wanted: int,
        matched_gt: Tensor,
        gt_labels: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """See :meth:`RandomRegions.positives`."""
        if candidates.shape[0] <= wanted:
            return candidates
        ordered = self.in_order(candidates, matched_gt, gt_labels, generator)
        return ordered[:wanted].sort().values

    def in_order(
        self, candidates: Tensor, matched_gt: Tensor, gt_labels: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """All candidates, those that are taken first in front."""
        order = torch.randperm(candidates.shape[0], generator=generator, device=candidates.device)
        shuffled = candidates[order]
        return shuffled[rounds(matched_gt[shuffled], gt_labels.shape[0], generator)]


class ClassBalancedPositives(InstanceBalancedPositives):
    """As many positives of every class as possible, and within a class of every object, both as above; for data with
    a severe imbalance of classes.

    Args:
        count, positive_fraction, negatives: see :class:`InstanceBalancedPositives`.
    """

    def in_order(
        self, candidates: Tensor, matched_gt: Tensor, gt_labels: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """See :meth:`InstanceBalancedPositives.in_order`."""
        ordered = super().in_order(candidates, matched_gt, gt_labels, generator)
        # objects in turns, then classes in turns: within a class the order stays that of its objects' turns
        present, classes = gt_labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        return ordered[rounds(classes[matched_gt[ordered]], present.shape[0], generator)]
