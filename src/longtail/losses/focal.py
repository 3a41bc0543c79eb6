"""Focal loss (Lin et al., ICCV 2017, eq. 5) in its sigmoid form, and the softmax form used in region heads."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import ClassificationLoss
from longtail.losses.cells import full_precision, left_out_cells, target_cells
from longtail.losses.sigmoid import prior_logit, sigmoid_scores

# Stands for log(0): small enough for any gamma > 0, but finite, so that gamma = 0 gives 0 and not 0 * infinity.
_LOG_ZERO = -1e30


class FocalLoss(ClassificationLoss):
    """Cross-entropy in which well-classified rows fade out.

    * ``form="sigmoid"``: sum over classes of ``alpha_t (1 - p_t)^gamma (-log p_t)`` with ``p_t = p, alpha_t = alpha``
      for the row's label and ``p_t = 1 - p, alpha_t = 1 - alpha`` for the other classes; divided by the number of
      foreground rows with weight > 0, at least 1. C outputs, no background output.
    * ``form="softmax"``: ``(1 - P_y)^gamma (-log P_y)`` over C classes and background, averaged over the rows with
      weight > 0. ``alpha`` and ``prior`` play no part. For region heads only: a dense head needs the prior.

    Both are computed from log-probabilities, so that value and gradient stay finite for any logits and gamma >= 0.
    ``gamma=0`` is the plain cross-entropy (times ``alpha_t`` in the sigmoid form).

    A class that ``class_mask`` takes out of a row contributes nothing to it (softmax: leaves the denominator), unless
    it is the row's label.

    Args:
        num_classes: foreground classes C, at least 1.
        form: ``"sigmoid"`` or ``"softmax"``.
        gamma: how fast well-classified rows fade, >= 0; published 2.
        alpha: weight of the label's cell in the sigmoid form, in [0, 1]; published 0.25.
        prior: probability that every sigmoid output starts from, in (0, 1); published 0.01.

    Shapes:
        logits (N, C), or (N, C + 1) in the softmax form; labels (N,) in 0..C with C = background; class_mask (N, C)
        bool. Row losses (N,), in float32 or float64, >= 0. Scores (N, C + 1): sigmoids and a background column of 0,
        or the softmax.

    Raises:
        ValueError: an argument outside its range.
    """

    heads = frozenset({"roi", "dense", "query"})

    def __init__(
        self,
        num_classes: int,
        *,
        form: Literal["sigmoid", "softmax"] = "sigmoid",
        gamma: float = 2.0,
        alpha: float = 0.25,
        prior: float = 0.01,
    ) -> None:
        super().__init__(num_classes=num_classes)
        if form not in ("sigmoid", "softmax"):
            raise ValueError(f'form must be "sigmoid" or "softmax", got {form!r}')
        if gamma < 0 or not 0 <= alpha <= 1:
            raise ValueError(f"gamma must be >= 0 and alpha in [0, 1], got {gamma} and {alpha}")
        self.form = form
        self.gamma = gamma
        self.alpha = alpha
        self._bias_prior = prior_logit(prior)
        if form == "softmax":
            self.heads = frozenset({"roi"})  # type: ignore[misc]  # narrower than the class: see above

    @property
    def num_logits(self) -> int:
        """C in the sigmoid form, C + 1 in the softmax form."""
        return self.num_classes + int(self.form == "softmax")

    @property
    def bias_prior(self) -> float | None:
        """Logit of ``prior`` in the sigmoid form."""
        return self._bias_prior if self.form == "sigmoid" else None

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
        left_out = None if class_mask is None else left_out_cells(labels, class_mask, self.num_logits)
        if self.form == "softmax":
            return self._softmax_rows(logits, labels, left_out)
        cells = self._sigmoid_cells(logits, target_cells(labels, self.num_logits))
        if left_out is not None:
            cells = cells.masked_fill(left_out, 0.0)
        return cells.sum(dim=1)

    def _sigmoid_cells(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of every cell, (N, C)."""
        signed = torch.where(target, logits, -logits)  # p_t = sigmoid(signed)
        fade = (self.gamma * F.logsigmoid(-signed)).exp()  # (1 - p_t)^gamma
        cells = -fade * F.logsigmoid(signed)
        return torch.where(target, self.alpha * cells, (1 - self.alpha) * cells)

    def _softmax_rows(self, logits: Tensor, labels: Tensor, left_out: Tensor | None) -> Tensor:
        """Loss of every row, (N,)."""
        label = labels.unsqueeze(1)
        own = logits.gather(1, label).squeeze(1)
        others = logits.scatter(1, label, _LOG_ZERO)
        if left_out is not None:
            others = others.masked_fill(left_out, _LOG_ZERO)
        # against all others together: P_y = sigmoid(lead), and both logarithms are exact near 0 and 1
        lead = own - others.logsumexp(dim=1)
        return -(self.gamma * F.logsigmoid(-lead)).exp() * F.logsigmoid(lead)

    def scores(self, logits: Tensor) -> Tensor:
        if self.form == "softmax":
            return full_precision(logits).softmax(dim=1)
        return sigmoid_scores(logits, self.num_classes)

    def normaliser_count(self, labels: Tensor, weight: Tensor | None) -> Tensor | float:
        """Foreground rows with weight > 0 in the sigmoid form; all of them in the softmax form."""
        if self.form == "softmax":
            return super().normaliser_count(labels, weight)
        foreground = labels < self.num_classes
        if weight is not None:
            foreground = foreground & (weight > 0)
        return foreground.sum()
