"""Class-balanced loss: rows weighted by the effective number of their class (Cui et al., CVPR 2019, eq. 2 and 7)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from longtail.losses.base import TEST_TIME_CLASSIFIERS, ClassificationLoss
from longtail.losses.focal import FocalLoss
from longtail.losses.sigmoid import SigmoidCrossEntropy
from longtail.losses.softmax import SoftmaxCrossEntropy

BACKGROUND_SHARE = 3
"""In the pseudo-count variant the background counts as so many times all instances together."""


class ClassBalancedLoss(ClassificationLoss):
    """``w_y`` times the softmax cross-entropy, binary cross-entropy or sigmoid focal loss of a row of class y.

    ``w_c = (1 - beta) / (1 - beta^n_c)``, rescaled so that the C weights sum to C. The weighted sum is divided by what
    the loss within divides by (rows with weight > 0, or foreground rows for focal), not by the sum of the weights.

    The paper has no background. Here background rows have weight 1, or, with ``background="pseudo_count"``, the weight
    of a class with three times all instances, on the scale of the other weights.

    Args:
        instance_counts: training instances per class, (C,), >= 0. A class with none is treated as having one.
        beta: in [0, 1); published 0.9, 0.99, 0.999 and 0.9999; 0 weighs all classes alike.
        form: ``"softmax"`` over C classes and background, ``"sigmoid"``, or ``"focal"`` (gamma 2, alpha 0.25).
        background: ``"one"`` or ``"pseudo_count"``.

    State:
        ``row_weight`` (C + 1,), constant, background last.

    Shapes:
        logits (N, C + 1) for ``"softmax"``, else (N, C); labels (N,) in 0..C with C = background; class_mask (N, C)
        bool. Row losses (N,), >= 0. Scores (N, C + 1), as those of the loss within.

    Raises:
        ValueError: a negative count, no class, or an argument outside its range.
    """

    def __init__(
        self,
        instance_counts: Tensor,
        *,
        beta: float = 0.9999,
        form: Literal["softmax", "sigmoid", "focal"] = "softmax",
        background: Literal["one", "pseudo_count"] = "one",
    ) -> None:
        super().__init__(num_classes=len(instance_counts))
        if form not in ("softmax", "sigmoid", "focal"):
            raise ValueError(f'form must be "softmax", "sigmoid" or "focal", got {form!r}')
        if background not in ("one", "pseudo_count"):
            raise ValueError(f'background must be "one" or "pseudo_count", got {background!r}')
        self.form = form
        self.inner = _inner(form, self.num_classes)
        weight = effective_number_weights(instance_counts, beta)
        last = torch.ones(1, dtype=torch.float64)
        if background == "pseudo_count":
            raw = effective_number(instance_counts.double().clamp(min=1), beta)
            pseudo = (BACKGROUND_SHARE * instance_counts.double().sum()).clamp(min=1)
            last = effective_number(pseudo, beta).reciprocal().mul(weight[0] * raw[0]).reshape(1)
        self.row_weight: Tensor
        self.register_buffer("row_weight", torch.cat([weight, last]).float(), persistent=False)
        self.heads = self.inner.heads  # type: ignore[misc]  # those of the loss within
        if form == "softmax":
            self.classifiers = TEST_TIME_CLASSIFIERS  # type: ignore[misc]
            self.adjustable = True  # type: ignore[misc]

    @property
    def num_logits(self) -> int:
        """C + 1 in the softmax form, else C."""
        return self.inner.num_logits

    @property
    def bias_prior(self) -> float | None:
        """That of the loss within: the logit of 0.01 in the two sigmoid forms."""
        return self.inner.bias_prior

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        class_mask: Tensor | None = None,
        update_state: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.inner.row_losses(logits, labels, class_mask=class_mask) * self.row_weight[labels]

    def scores(self, logits: Tensor) -> Tensor:
        return self.inner.scores(logits)

    def normaliser_count(self, labels: Tensor, weight: Tensor | None) -> Tensor | float:
        """As the loss within: rows, or foreground rows for focal, with weight > 0."""
        return self.inner.normaliser_count(labels, weight)


def _inner(form: str, num_classes: int) -> ClassificationLoss:
    if form == "softmax":
        return SoftmaxCrossEntropy(num_classes)
    if form == "sigmoid":
        return SigmoidCrossEntropy(num_classes)
    return FocalLoss(num_classes)


def effective_number(counts: Tensor, beta: float) -> Tensor:
    """``(1 - beta^n) / (1 - beta)`` in float64, >= 1: n for beta towards 1, and 1 for beta = 0.

    Raises:
        ValueError: ``beta`` outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
    return (1 - torch.pow(torch.tensor(beta, dtype=torch.float64), counts.double())) / (1 - beta)


def effective_number_weights(instance_counts: Tensor, beta: float) -> Tensor:
    """Inverse effective numbers of the classes, (C,) float64, rescaled to sum C; no instances count as one.

    Raises:
        ValueError: a negative count, or ``beta`` outside [0, 1).
    """
    if (instance_counts < 0).any():
        raise ValueError(f"instance_counts must be >= 0, got {instance_counts.min()}")
    weight = effective_number(instance_counts.double().clamp(min=1), beta).reciprocal()
    return weight * (len(weight) / weight.sum())
