"""DropLoss (Hsieh et al., AAAI 2021, eqs. 4 to 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import BatchLoss
from longtail.losses.cells import counted_rows, full_precision, left_out_cells, target_cells
from longtail.losses.equalization import tail_classes, tail_negatives
from longtail.losses.sigmoid import prior_logit, sigmoid_scores


class DropLoss(BatchLoss):
    """EQL that also spares tail classes most of the background.

    Foreground rows are those of :class:`longtail.losses.EqualizationLoss`: no negatives for tail classes. In background
    rows, every cell of a tail class is kept with probability rho, the share of tail rows among this batch's foreground
    rows, and dropped otherwise. Without any foreground row nothing is dropped, as in the released code, where rho is
    then not a number. The sum of the kept binary cross-entropies is averaged over the rows with weight > 0; rows with
    weight 0 do not count for rho.

    Drawing needs a ``generator``; without one all background cells are kept.

    A class that ``class_mask`` takes out of a row contributes nothing to it, unless it is the row's label.

    Args:
        image_frequency: share of the training images that show each class, (C,), in [0, 1].
        threshold: tail classes have a smaller frequency. Published 0.00177 for LVIS v0.5 and 0.0010062 for v1, which
            are exactly the rare and common classes.
        prior: probability that every output starts from, in (0, 1); EQL's 0.001.

    Shapes:
        logits (N, C); labels (N,) in 0..C with C = background; class_mask (N, C) bool. Row losses (N,), in float32 or
        float64, >= 0. Scores (N, C + 1): sigmoids and a background column of 0.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(self, image_frequency: Tensor, *, threshold: float = 0.00177, prior: float = 0.001) -> None:
        super().__init__(num_classes=len(image_frequency))
        self._bias_prior = prior_logit(prior)
        self.tail: Tensor
        self.register_buffer("tail", tail_classes(image_frequency, threshold), persistent=False)

    @property
    def num_logits(self) -> int:
        """C."""
        return self.num_classes

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
        target = target_cells(labels, self.num_classes)
        dropped = tail_negatives(labels, self.tail)
        if generator is not None:
            dropped = dropped | self._dropped_background(labels, counted_rows(labels, weight), generator)
        if class_mask is not None:
            dropped = dropped | left_out_cells(labels, class_mask, self.num_classes)
        cells = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
        return cells.masked_fill(dropped, 0.0).sum(dim=1)

    def _dropped_background(self, labels: Tensor, counted: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C) bool: cells of tail classes in background rows that the draw leaves out."""
        foreground = (labels < self.num_classes) & counted
        in_tail = (target_cells(labels, self.num_classes) & self.tail).any(dim=1) & counted
        kept_share = torch.where(foreground.any(), in_tail.sum() / foreground.sum().clamp(min=1), 1.0)
        draw = torch.rand(labels.shape[0], self.num_classes, generator=generator, device=labels.device)
        background = (labels == self.num_classes).unsqueeze(1)
        return background & self.tail & (draw >= kept_share)

    def scores(self, logits: Tensor) -> Tensor:
        return sigmoid_scores(logits, self.num_classes)
