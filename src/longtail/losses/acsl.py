"""Adaptive class suppression loss, ACSL (Wang et al., CVPR 2021, eqs. 3 to 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import BatchLoss
from longtail.losses.cells import counted_rows, full_precision, left_out_cells, target_cells
from longtail.losses.sigmoid import prior_logit, sigmoid_scores


class ACSLoss(BatchLoss):
    """An object is a negative only for the classes it is mistaken for.

    C + 1 sigmoid outputs, one of them for the background. Cells that count:

    * foreground row: its label, and every output (the background's included) with ``sigmoid(z) >= threshold``;
    * background row: the background output and all frequent classes; common classes in ``int(common_share n)`` of the n
      background rows, rare ones in ``int(rare_share n)``, drawn uniformly and independently of each other.

    The sum of their binary cross-entropies is averaged over the rows with weight > 0; rows with weight 0 are neither
    drawn nor counted. A class is rare up to ``edges[0]``, common up to ``edges[1]`` and frequent above.

    Drawing needs a ``generator``; without one background rows are negatives for every class. The shares are those of
    the released code, whose comments name others (1/3, 2/3), and which does not apply the threshold to background rows
    although a comment says so.

    A class that ``class_mask`` takes out of a row contributes nothing to it, unless it is the row's label.

    Args:
        image_counts: training images that show each class, (C,), >= 0.
        edges: where rare and common classes end, ascending; published 10 and 100.
        threshold: score from which another class counts as a mistake, in [0, 1]; published 0.7.
        common_share, rare_share: shares of the background rows, in [0, 1]; published 0.1 and 0.01.
        prior: probability that every output starts from, in (0, 1); published 0.01.

    Shapes:
        logits (N, C + 1), background last; labels (N,) in 0..C with C = background; class_mask (N, C) bool. Row
        losses (N,), in float32 or float64, >= 0. Scores (N, C + 1): sigmoids; rows do not sum to 1.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        image_counts: Tensor,
        *,
        edges: tuple[float, float] = (10, 100),
        threshold: float = 0.7,
        common_share: float = 0.1,
        rare_share: float = 0.01,
        prior: float = 0.01,
    ) -> None:
        super().__init__(num_classes=len(image_counts))
        if (image_counts < 0).any() or edges[0] > edges[1]:
            raise ValueError(f"image_counts must be >= 0 and edges ascend, got min {image_counts.min()} and {edges}")
        for name, value in (("threshold", threshold), ("common_share", common_share), ("rare_share", rare_share)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        self.threshold = threshold
        self.common_share = common_share
        self.rare_share = rare_share
        self._bias_prior = prior_logit(prior)
        self.rare: Tensor
        self.common: Tensor
        rare = image_counts <= edges[0]
        # with the background's output, which is neither
        self.register_buffer("rare", F.pad(rare, (0, 1)), persistent=False)
        self.register_buffer("common", F.pad(~rare & (image_counts <= edges[1]), (0, 1)), persistent=False)

    def acts_on(self) -> str:
        """How many classes see a share of the background alone."""
        rare, common = int(self.rare.sum()), int(self.common.sum())
        return (
            f"of {self.num_classes} classes, {rare} rare ones see {self.rare_share:.2%} of the background regions and "
            f"{common} common ones {self.common_share:.2%}; all are spared the objects of others that score below "
            f"{self.threshold:g}"
        )

    @property
    def bias_prior(self) -> float:
        """Logit of ``prior``."""
        return self._bias_prior

    def batch_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        weight: Tensor | None,
        class_mask: Tensor | None,
        normaliser: Tensor | float,
        update_state: bool,
        generator: torch.Generator | None,
    ) -> Tensor:
        logits = full_precision(logits)
        target = target_cells(labels, self.num_logits, logits.dtype)
        least = self._least_score(labels, weight, generator).to(logits.dtype)
        kept = logits.detach().sigmoid().ge_(least).scatter_(1, labels.unsqueeze(1), 1.0)
        cells = F.binary_cross_entropy_with_logits(logits, target, kept, reduction="none")
        if class_mask is not None:
            cells = cells.masked_fill(left_out_cells(labels, class_mask, self.num_logits), 0.0)
        return cells.sum(dim=1)

    def _least_score(self, labels: Tensor, weight: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Score from which a cell counts, (N, C + 1), or (N, 1) without a draw: the threshold in foreground rows, 0 in
        background rows, 2 where the draw leaves the class out."""
        background = labels == self.num_classes
        least = torch.where(background, 0.0, self.threshold).unsqueeze(1)
        if generator is None:
            return least
        counted = background & counted_rows(labels, weight)
        common = background & ~drawn_rows(counted, self.common_share, generator)
        rare = background & ~drawn_rows(counted, self.rare_share, generator)
        left_out = 2 * torch.stack([common, rare], dim=1).to(least.dtype)
        return (left_out @ torch.stack([self.common, self.rare]).to(least.dtype)).clamp_(min=least)

    def scores(self, logits: Tensor) -> Tensor:
        return sigmoid_scores(logits, self.num_classes)


def drawn_rows(candidates: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(N,) bool: ``int(share * n)`` of the n ``candidates`` (N,), drawn uniformly without replacement."""
    wanted = (candidates.sum().double() * share).floor()
    draw = torch.rand(candidates.shape, generator=generator, device=candidates.device).masked_fill(~candidates, 2.0)
    return candidates & (draw.argsort().argsort() < wanted)
