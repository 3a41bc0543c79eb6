"""Online hard example mining (Shrivastava et al., CVPR 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.sampling.regions import LossOf, RegionSampler


class OnlineHardExamples(RegionSampler):
    """The positives and the negatives with the largest classification loss, chosen separately.

    At most ``int(count * positive_fraction)`` positives, then negatives up to ``count``. Where all of a kind fit they
    are all taken, without a look at their loss; of equal losses the first candidates win. It draws nothing, and every
    candidate goes through the head twice, the first time without gradient and without any change of state.
    """

    needs_loss = True

    def __call__(
        self,
        iou: Tensor,
        matched_gt: Tensor,
        gt_labels: Tensor,
        generator: torch.Generator | None,
        loss_of: LossOf | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`RegionSampler.__call__`.

        Raises:
            ValueError: no ``loss_of``.
        """
        if loss_of is None:
            raise ValueError("OnlineHardExamples needs loss_of, the loss of the candidates it chooses from")
        positive = hardest(torch.where(matched_gt >= 0)[0], int(self.count * self.positive_fraction), loss_of)
        negative = hardest(torch.where(matched_gt == -1)[0], self.count - positive.shape[0], loss_of)
        return positive, negative


def hardest(candidates: Tensor, count: int, loss_of: LossOf) -> Tensor:
    """At most ``count`` of ``candidates`` (M,), those of largest loss, in ascending order."""
    if candidates.shape[0] <= count:
        return candidates
    order = loss_of(candidates).argsort(descending=True, stable=True)
    return candidates[order[:count]].sort().values
