"""Sigmoid (binary) cross-entropy: every class decides for itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import ClassificationLoss
from longtail.losses.cells import full_precision, left_out_cells, target_cells


class SigmoidCrossEntropy(ClassificationLoss):
    """Sum over classes of the binary cross-entropy between ``sigmoid(z_c)`` and ``[y = c]``, divided by the rows.

    A background row is a negative for every class. With ``background_logit`` there is one more output, whose target
    is 1 for background rows. The sum over classes is divided by the number of rows with weight > 0; dense and query
    heads hand over their own normaliser (number of positives).

    A class that ``class_mask`` takes out of a row contributes nothing to it, unless it is the row's label.

    Args:
        num_classes: foreground classes C, at least 1.
        background_logit: one more output for the background.
        prior: probability that every output starts from, in (0, 1). Without it the first loss is about
            C * log(2) per row.

    Shapes:
        logits (N, C), or (N, C + 1) with the background logit last; labels (N,) in 0..C with C = background;
        class_mask (N, C) bool. Row losses (N,), in float32 or float64, >= 0. Scores (N, C + 1): the sigmoid of every
        logit; the background column is 0 where there is no background logit. Rows do not sum to 1.

    Raises:
        ValueError: ``num_classes`` below 1 or ``prior`` outside (0, 1).
    """

    heads = frozenset({"roi", "dense", "query"})

    def __init__(self, num_classes: int, *, background_logit: bool = False, prior: float = 0.01) -> None:
        super().__init__(num_classes=num_classes)
        self.background_logit = background_logit
        self.prior = prior
        self._bias_prior = prior_logit(prior)

    @property
    def num_logits(self) -> int:
        """C, or C + 1 with a background logit."""
        return self.num_classes + int(self.background_logit)

    @property
    def bias_prior(self) -> float:
        """Logit of ``prior``."""
        return self._bias_prior

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        class_mask: Tensor | None = None,
        update_state: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        logits = full_precision(logits)
        target = target_cells(labels, self.num_logits, logits.dtype)
        cells = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if class_mask is not None:
            cells = cells.masked_fill(left_out_cells(labels, class_mask, self.num_logits), 0.0)
        return cells.sum(dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        return sigmoid_scores(logits, self.num_classes)


def prior_logit(prior: float) -> float:
    """Logit whose sigmoid is ``prior``: ``-log((1 - prior) / prior)``.

    Raises:
        ValueError: ``prior`` outside (0, 1).
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior must lie between 0 and 1, got {prior}")
    return -math.log((1 - prior) / prior)


def sigmoid_scores(logits: Tensor, num_classes: int) -> Tensor:
    """Sigmoid of (N, C) or (N, C + 1) logits, (N, C + 1); a missing background column is 0."""
    return F.pad(full_precision(logits).sigmoid(), (0, num_classes + 1 - logits.shape[1]))
