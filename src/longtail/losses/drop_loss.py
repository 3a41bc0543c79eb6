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

    def acts_on(self) -> str:
        """How many classes are tail classes."""
        return f"{int(self.tail.sum())} of {self.num_classes} classes spared the objects of others and most background"

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
        target = target_cells(labels, self.num_classes, logits.dtype)
        if generator is None:
            kept = tail_negatives(labels, self.tail, self.num_classes, logits.dtype, scale=-1.0).add_(1.0)
        else:
            kept = self._drawn(labels, counted_rows(labels, weight), generator).to(logits.dtype)
        cells = F.binary_cross_entropy_with_logits(logits, target, kept, reduction="none")
        if class_mask is not None:
            cells = cells.masked_fill(left_out_cells(labels, class_mask, self.num_classes), 0.0)
        return cells.sum(dim=1)

    def _drawn(self, labels: Tensor, counted: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C) of 0 and 1: 0 at tail classes in foreground rows of another class, and where the draw leaves tail
        classes out of a background row."""
        foreground = labels < self.num_classes
        in_tail = F.pad(self.tail, (0, 1), value=False)[labels] & counted
        objects = (foreground & counted).sum()
        kept_share = torch.where(objects > 0, in_tail.sum() / objects.clamp(min=1), 1.0)
        least = torch.maximum(torch.where(foreground, 0.0, kept_share).unsqueeze(1), (~self.tail).to(kept_share.dtype))
        draw = torch.rand(labels.shape[0], self.num_classes, generator=generator, device=labels.device)
        label = labels.clamp(max=self.num_classes - 1).unsqueeze(1)
        kept = draw.lt_(least)
        # a background row has no label whose cell is kept for sure
        return kept.scatter_(1, label, torch.where(foreground.unsqueeze(1), 1.0, kept.gather(1, label)))

    def scores(self, logits: Tensor) -> Tensor:
        return sigmoid_scores(logits, self.num_classes)
