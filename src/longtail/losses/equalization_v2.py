"""Equalization loss v2, EQLv2 (Tan et al., CVPR 2021, eqs. 3 to 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import BatchLoss
from longtail.losses.cells import full_precision, left_out_cells, target_cells
from longtail.losses.gradient_ratio import GradientRatio
from longtail.losses.sigmoid import prior_logit


class EqualizationLossV2(BatchLoss):
    """Gradients of positives and negatives are balanced for every class on its own.

    With g_c the ratio of the positive to the negative gradient that class c has received so far (100 before any):

        m(g) = 1 / (1 + exp(-gamma (g - mu))),  negatives weigh m(g_c),  positives weigh 1 + alpha (1 - m(g_c)).

    One more output says *background*: its target is 1 for background rows, and all its cells weigh 1. The weighted sum
    of binary cross-entropies over all outputs is averaged over the rows with weight > 0.

    Then the gradients ``|sigmoid(z) - t| * w`` of this batch, times the rows' weights, are added to the state. They are
    not divided by the normaliser, and so do not depend on it. Cells taken out by ``class_mask`` and rows with weight 0
    add nothing.

    A class never seen as positive has g = 0, so that its negatives weigh 0.00007 with the published values: it is
    hardly suppressed at all.

    Args:
        num_classes: foreground classes C, at least 1.
        gamma: steepness of m, > 0; published 12.
        mu: ratio at which m is 1/2; published 0.8.
        alpha: how much positives gain, >= 0; published 4.
        prior: probability that every output starts from, in (0, 1). The paper names none; EQL's 0.001.
        sync: whether the gradients of all processes are summed, as in the paper; False is the default of a widely used
            port.

    State:
        ``gradients.positive`` and ``gradients.negative`` (C,), float64, from 0; shared by all processes if ``sync``.

    Shapes:
        logits (N, C + 1), background last; labels (N,) in 0..C with C = background; class_mask (N, C) bool. Row
        losses (N,), in float32 or float64, >= 0. Scores (N, C + 1): ``s(z_c) (1 - s(z_bg))``, then ``s(z_bg)``; rows do
        not sum to 1.

    Raises:
        ValueError: an argument outside its range.
    """

    heads = frozenset({"roi", "query"})

    def __init__(
        self,
        num_classes: int,
        *,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        prior: float = 0.001,
        sync: bool = True,
    ) -> None:
        super().__init__(num_classes=num_classes)
        if gamma <= 0 or alpha < 0:
            raise ValueError(f"gamma must be above 0 and alpha at least 0, got {gamma} and {alpha}")
        self.gamma = gamma
        self.mu = mu
        self.alpha = alpha
        self._bias_prior = prior_logit(prior)
        self.gradients = GradientRatio(num_classes, start=100.0, sync=sync)

    def running_shares(self) -> dict[str, Tensor]:
        """``spared_classes``: those whose negatives weigh less than half, that is g below ``mu``."""
        return {"spared_classes": (self.gradients() < self.mu).double().mean()}

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
        cell_weight = self._cell_weight(labels, logits.dtype)
        if class_mask is not None:
            cell_weight = cell_weight.masked_fill(left_out_cells(labels, class_mask, self.num_logits), 0.0)
        rows = F.binary_cross_entropy_with_logits(logits, target, cell_weight, reduction="none").sum(dim=1)
        if update_state:
            self._count(logits.detach(), target, cell_weight, weight)
        return rows

    def _cell_weight(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, C + 1) from what the classes have received so far; 1 in the background's column."""
        negative = torch.sigmoid(self.gamma * (self.gradients() - self.mu))
        negative = F.pad(negative, (0, 1), value=1.0)
        positive = 1 + self.alpha * (1 - negative)
        return (
            negative.to(dtype).repeat(len(labels), 1).scatter_(1, labels[:, None], positive.to(dtype)[labels][:, None])
        )

    def _count(self, logits: Tensor, target: Tensor, cell_weight: Tensor, weight: Tensor | None) -> None:
        """Adds this batch's gradients to the state."""
        gradient = logits.sigmoid().sub_(target).abs_().mul_(cell_weight)
        if weight is not None:
            gradient = torch.where((weight > 0).unsqueeze(1), gradient * weight.unsqueeze(1), 0.0)
        self.gradients.add(gradient[:, : self.num_classes], target[:, : self.num_classes])

    def scores(self, logits: Tensor) -> Tensor:
        scores = full_precision(logits).sigmoid()
        background = scores[:, self.num_classes :]
        return torch.cat([scores[:, : self.num_classes] * (1 - background), background], dim=1)
