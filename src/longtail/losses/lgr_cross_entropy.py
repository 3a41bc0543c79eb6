"""Localised gradient re-weighting of the cross-entropy (Libra R-CNN, journal version, equations 17-19)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.balanced_l1 import gradient_weight, steepness
from longtail.losses.base import ClassificationLoss
from longtail.losses.cells import full_precision, left_out_cells, target_cells
from longtail.losses.sigmoid import prior_logit, sigmoid_scores
from longtail.losses.softmax import masked_cross_entropy

Form = Literal["softmax", "sigmoid"]
Norm = Literal["target", "l1_half", "l2"]


class LGRCrossEntropy(ClassificationLoss):
    """Cross-entropy whose every row is weighted by ``rho = alpha ln(b g + 1) / g``, g the size of its gradient.

    ``alpha ln(b + 1) = gamma`` gives b. With one-hot targets only the label's factor survives in the paper's sum, so
    ``g = 1 - p_y``, rho goes from gamma (p_y = 0) to ``alpha b`` (p_y = 1; 1.99 at the defaults), and well classified
    regions gain, the opposite of the focal loss. rho carries no gradient: ``d loss / d z = rho (p - t)``. The sum over
    rows is divided by the number of rows with weight > 0, not by the sum of rho.

    The sigmoid form weighs every cell of the binary cross-entropy by its own gradient ``|s - t|`` in the same way. The
    paper does not state it; it is the counterpart for losses with binary outputs.

    A class that ``class_mask`` takes out of a row leaves the denominator (softmax) or gives nothing (sigmoid).

    Args:
        num_classes: foreground classes C, at least 1.
        alpha: > 0; smaller favours well classified regions more. Large alpha tends to plain cross-entropy.
        gamma: > 0; the weight of a region whose label has probability 0.
        form: ``"softmax"`` or ``"sigmoid"``.
        norm: what the size of the gradient p - t of a row is (softmax form only): ``"target"`` = ``1 - p_y``;
            ``"l1_half"`` = half the sum of absolute values, the same for one-hot targets; ``"l2"`` = Euclidean, in 0
            .. sqrt(2), an experiment.
        background_logit: one more output for the background (sigmoid form only; softmax always has it).
        prior: probability every output starts from, in (0, 1) (sigmoid form only).

    Shapes:
        logits (N, C + 1), background last, or (N, C) in the sigmoid form without background logit; labels (N,) in
        0..C with C = background; class_mask (N, C) bool. Row losses (N,), in float32 or float64, >= 0. Scores
        (N, C + 1): softmax or sigmoids; a missing background column is 0.

    Raises:
        ValueError: arguments out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 0.8,
        gamma: float = 1.0,
        form: Form = "softmax",
        norm: Norm = "target",
        background_logit: bool = False,
        prior: float = 0.01,
    ) -> None:
        super().__init__(num_classes=num_classes)
        if form not in ("softmax", "sigmoid"):
            raise ValueError(f"form must be 'softmax' or 'sigmoid', got {form!r}")
        if norm not in ("target", "l1_half", "l2"):
            raise ValueError(f"norm must be 'target', 'l1_half' or 'l2', got {norm!r}")
        self.alpha = alpha
        self.gamma = gamma
        self.b = steepness(alpha, gamma)
        self.form = form
        self.norm = norm
        self.background_logit = background_logit
        self._bias_prior = prior_logit(prior)

    @property
    def num_logits(self) -> int:
        """C + 1, or C in the sigmoid form without background logit."""
        return self.num_classes + int(self.form == "softmax" or self.background_logit)

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
        if self.form == "sigmoid":
            return self._sigmoid_rows(logits, labels, class_mask)
        rows = masked_cross_entropy(logits, labels, class_mask)
        with torch.no_grad():
            rho = gradient_weight(self._gradient_size(logits, labels, class_mask, rows), alpha=self.alpha, b=self.b)
        return rho * rows

    def _gradient_size(self, logits: Tensor, labels: Tensor, class_mask: Tensor | None, rows: Tensor) -> Tensor:
        """(N,) size of the gradient p - t of every row."""
        if self.norm == "target":
            return -torch.expm1(-rows)  # 1 - p_y
        if class_mask is not None:
            logits = logits.masked_fill(left_out_cells(labels, class_mask, logits.shape[1]), float("-inf"))
        gradient = logits.softmax(dim=1) - target_cells(labels, self.num_logits, logits.dtype)
        return gradient.abs().sum(dim=1) / 2 if self.norm == "l1_half" else gradient.norm(dim=1)

    def _sigmoid_rows(self, logits: Tensor, labels: Tensor, class_mask: Tensor | None) -> Tensor:
        target = target_cells(labels, self.num_logits, logits.dtype)
        cells = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        cells = cells * sigmoid_gradient_weight(logits, target, alpha=self.alpha, b=self.b)
        if class_mask is not None:
            cells = cells.masked_fill(left_out_cells(labels, class_mask, self.num_logits), 0.0)
        return cells.sum(dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        if self.form == "softmax":
            return full_precision(logits).softmax(dim=1)
        return sigmoid_scores(logits, self.num_classes)


@torch.no_grad()
def sigmoid_gradient_weight(logits: Tensor, target: Tensor, *, alpha: float, b: float) -> Tensor:
    """rho of every cell of a binary cross-entropy, whose gradient has the size ``|sigmoid(z) - t|``; without
    gradient. ``target`` holds 0 and 1."""
    return gradient_weight((logits * (1 - 2 * target)).sigmoid(), alpha=alpha, b=b)
