"""Box losses of Libra R-CNN: balanced L1 (conference, equations 11-13) and LGR-L1 (journal, section 3.3.1)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from longtail.losses.base import BoxLoss
from longtail.losses.cells import full_precision

BetaForm = Literal["exact", "released"]


class BalancedL1Loss(BoxLoss):
    """Gradient ``alpha ln(b d / beta + 1)`` where ``d = |difference| < beta``, ``gamma`` beyond.

    Compared with smooth L1, small errors get more gradient and large ones no more than gamma. ``alpha ln(b + 1) =
    gamma`` makes it continuous, hence ``b = exp(gamma / alpha) - 1``. The loss is ``(alpha / b) (b d + beta)
    ln(b d / beta + 1) - alpha d`` below beta and ``gamma d + gamma beta / b - alpha beta`` above, summed over the four
    offsets.

    Args:
        alpha: how much small errors count, > 0.
        gamma: largest gradient, > 0.
        beta: where the gradient becomes constant, > 0, in units of the encoded offsets. The paper has 1, its
            RetinaNet 0.11.
        beta_form: ``"exact"`` is the formula above. ``"released"`` is that of the authors' code: ``b d + 1`` in place
            of ``b d + beta`` and ``gamma / b - alpha beta`` as the last constant. The same for beta = 1; below that,
            its gradient does not vanish with d (it tends to 4.05 for beta = 0.11).

    Shapes:
        predicted and target (P, 4), encoded offsets (dx, dy, dw, dh). Row losses (P,), in float32 or float64, >= 0.

    Raises:
        ValueError: arguments out of range.
    """

    def __init__(
        self, *, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0, beta_form: BetaForm = "exact"
    ) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta must be above 0, got {beta}")
        if beta_form not in ("exact", "released"):
            raise ValueError(f"beta_form must be 'exact' or 'released', got {beta_form!r}")
        self.alpha = alpha
        self.gamma = gamma
        self.beta = beta
        self.b = steepness(alpha, gamma)
        self.offset = beta if beta_form == "exact" else 1.0

    def row_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        distance = (full_precision(predicted) - full_precision(target)).abs()
        near = distance.clamp(max=self.beta)  # keeps the branch not taken finite
        inner = (self.alpha / self.b) * (self.b * near + self.offset) * torch.log1p(self.b * near / self.beta)
        inner = inner - self.alpha * near
        outer = self.gamma * distance + self.gamma * self.offset / self.b - self.alpha * self.beta
        return torch.where(distance < self.beta, inner, outer).sum(dim=1)


class LGRL1Loss(BoxLoss):
    """Smooth L1 whose every offset is weighted so that its gradient is that of balanced L1 ("localised gradient
    re-weighting").

    ``rho(d) smooth_l1(d)`` with ``rho = alpha beta ln(b d / beta + 1) / d`` below beta and gamma beyond; rho carries no
    gradient and tends to ``alpha b`` at d = 0. Smooth L1 is ``d^2 / (2 beta)`` below beta and ``d - beta / 2`` beyond.
    The gradient equals that of :class:`BalancedL1Loss` with ``beta_form="exact"``, the value does not.

    Args:
        alpha, gamma, beta: as for :class:`BalancedL1Loss`.

    Shapes:
        predicted and target (P, 4), encoded offsets (dx, dy, dw, dh). Row losses (P,), in float32 or float64, >= 0.

    Raises:
        ValueError: arguments out of range.
    """

    def __init__(self, *, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta must be above 0, got {beta}")
        self.alpha = alpha
        self.gamma = gamma
        self.beta = beta
        self.b = steepness(alpha, gamma)

    def row_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        distance = (full_precision(predicted) - full_precision(target)).abs()
        near = distance.clamp(max=self.beta)
        rho = gradient_weight(near.detach() / self.beta, alpha=self.alpha, b=self.b)
        rho = torch.where(distance.detach() < self.beta, rho, self.gamma)
        smooth = torch.where(distance < self.beta, near * near / (2 * self.beta), distance - self.beta / 2)
        return (rho * smooth).sum(dim=1)


def steepness(alpha: float, gamma: float) -> float:
    """b of ``alpha ln(b + 1) = gamma``.

    Raises:
        ValueError: ``alpha`` or ``gamma`` not above 0, or so far apart that b is infinite.
    """
    if alpha <= 0 or gamma <= 0 or gamma / alpha > 700:
        raise ValueError(f"alpha and gamma must be above 0 and gamma / alpha at most 700, got {alpha} and {gamma}")
    return math.expm1(gamma / alpha)


def gradient_weight(size: Tensor, *, alpha: float, b: float) -> Tensor:
    """``alpha ln(b g + 1) / g`` for gradients of size g >= 0, and its limit ``alpha b (1 - b g / 2)`` near 0."""
    scaled = b * size
    tiny = 1e-6
    ratio = torch.log1p(scaled) / scaled.clamp(min=tiny)
    return alpha * b * torch.where(scaled < tiny, 1 - scaled / 2, ratio)
