"""Softmax cross-entropy over all classes and background: the loss of the baselines, RIO and FASA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import TEST_TIME_CLASSIFIERS, ClassificationLoss
from longtail.losses.cells import full_precision, left_out_cells


class SoftmaxCrossEntropy(ClassificationLoss):
    """``-log softmax(z)_y`` over C classes and background, averaged over the rows with weight > 0.

    A class that ``class_mask`` takes out of a row leaves that row's denominator (its logit counts as minus
    infinity). The label of the row and the background always stay.

    Args:
        num_classes: foreground classes C, at least 1.

    Shapes:
        logits (N, C + 1), background last; labels (N,) in 0..C with C = background; class_mask (N, C) bool.
        Row losses (N,), in float32 or float64, >= 0. Scores (N, C + 1), every row sums to 1.

    Raises:
        ValueError: ``num_classes`` below 1.
    """

    classifiers = TEST_TIME_CLASSIFIERS
    adjustable = True

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes=num_classes)

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        class_mask: Tensor | None = None,
        update_state: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return masked_cross_entropy(full_precision(logits), labels, class_mask)

    def scores(self, logits: Tensor) -> Tensor:
        return full_precision(logits).softmax(dim=1)


def masked_cross_entropy(logits: Tensor, labels: Tensor, class_mask: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy of every row, (N,), without the classes that ``class_mask`` takes out.

    Args:
        logits: (N, K) with K >= C; columns beyond C are never taken out.
        labels: (N,) in 0..K-1; the label of a row is never taken out.
        class_mask: (N, C) bool, False = the class leaves the row's denominator; None = all stay.
    """
    if class_mask is not None:
        logits = logits.masked_fill(left_out_cells(labels, class_mask, logits.shape[1]), float("-inf"))
    return F.cross_entropy(logits, labels, reduction="none")
