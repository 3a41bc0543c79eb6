"""Equalized focal loss, EFL (Li et al., CVPR 2022, eqs. 3 to 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import BatchLoss
from longtail.losses.cells import full_precision, left_out_cells, target_cells
from longtail.losses.gradient_ratio import GradientRatio
from longtail.losses.sigmoid import prior_logit, sigmoid_scores


class EqualizedFocalLoss(BatchLoss):
    """Focal loss with a focusing factor per class: the fewer positive gradients a class gets, the larger.

    With g_c in [0, 1] the ratio of the positive to the negative gradient that class c has received so far (1 before
    any) and ``gamma_c = gamma + scale (1 - g_c)``, every cell contributes

        alpha_t (gamma_c / gamma) (1 - p_t)^gamma_c (-log p_t),

    with p_t = p, alpha_t = ``alpha`` at the row's label and p_t = 1 - p, alpha_t = 1 - ``alpha`` elsewhere. The sum is
    divided by the number of foreground rows with weight > 0. The first step is the focal loss.

    Then the absolute gradients *as they are back-propagated*, that is with alpha_t, gamma_c / gamma, the row's weight
    and the normaliser, are added to the state, and ``g_c = clip(positive / (negative + 1e-10), 0, 1)``. They are
    computed in closed form, ``alpha_t (gamma_c / gamma) (1 - p_t)^gamma_c ((1 - p_t) - gamma_c p_t log p_t)``. A factor
    on the loss outside of this class changes no ratio and is left out. A caller that asks for rows alone and lets the
    state change gets weights of 1 and the paper's normaliser. A step hands over all its rows at once.

    Args:
        num_classes: foreground classes C, at least 1.
        gamma: focusing factor of a balanced class, > 0; published 2.
        scale: what a class without positive gradients gets in addition, >= 0; published 8.
        alpha: weight of the label's cell, in [0, 1]; published 0.25.
        prior: probability that every output starts from, in (0, 1); published 0.01.
        sync: whether the gradients of all processes are summed, as published.

    State:
        ``gradients.positive`` and ``gradients.negative`` (C,), float64, from 0; shared by all processes if ``sync``.

    Shapes:
        logits (N, C); labels (N,) in 0..C with C = background; class_mask (N, C) bool. Row losses (N,), in float32 or
        float64, >= 0. Scores (N, C + 1): sigmoids and a background column of 0.

    Raises:
        ValueError: an argument outside its range.
    """

    heads = frozenset({"dense", "query"})

    def __init__(
        self,
        num_classes: int,
        *,
        gamma: float = 2.0,
        scale: float = 8.0,
        alpha: float = 0.25,
        prior: float = 0.01,
        sync: bool = True,
    ) -> None:
        super().__init__(num_classes=num_classes)
        if gamma <= 0 or scale < 0 or not 0 <= alpha <= 1:
            raise ValueError(
                f"gamma must be above 0, scale at least 0 and alpha in [0, 1], got {gamma}, {scale} and {alpha}"
            )
        self.gamma = gamma
        self.scale = scale
        self.alpha = alpha
        self._bias_prior = prior_logit(prior)
        self.gradients = GradientRatio(num_classes, start=1.0, sync=sync)

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
        gamma = (self.gamma + self.scale * (1 - self.gradients().clamp(0, 1))).to(logits.dtype)  # (C,)
        share = gamma / self.gamma
        factor = torch.where(target, self.alpha * share, (1 - self.alpha) * share)
        if class_mask is not None:
            factor = factor.masked_fill(left_out_cells(labels, class_mask, self.num_classes), 0.0)
        signed = torch.where(target, logits, -logits)  # p_t = sigmoid(signed)
        log_p = F.logsigmoid(signed)
        fade = (gamma * F.logsigmoid(-signed)).exp()  # (1 - p_t)^gamma_c
        rows: Tensor = -(factor * fade * log_p).sum(dim=1)
        if update_state:
            signed, log_p = signed.detach(), log_p.detach()
            gradient = factor * fade.detach() * ((-signed).sigmoid() - gamma * signed.sigmoid() * log_p) / normaliser
            if weight is not None:
                gradient = torch.where((weight > 0).unsqueeze(1), gradient * weight.unsqueeze(1), 0.0)
            self.gradients.add(gradient, target.to(gradient.dtype))
        return rows

    def scores(self, logits: Tensor) -> Tensor:
        return sigmoid_scores(logits, self.num_classes)

    def normaliser_count(self, labels: Tensor, weight: Tensor | None) -> Tensor | float:
        """Foreground rows with weight > 0."""
        foreground: Tensor = labels < self.num_classes
        if weight is not None:
            foreground = foreground & (weight > 0)
        return foreground.sum()
