"""Equalization loss, EQL (Tan et al., CVPR 2020, eqs. 2 to 7)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import ClassificationLoss
from longtail.losses.cells import full_precision, left_out_cells, target_cells
from longtail.losses.sigmoid import prior_logit, sigmoid_scores
from longtail.losses.softmax import masked_cross_entropy

_LOG_ZERO = -1e30
"""In place of minus infinity, which times 0 is not a number."""


class EqualizationLoss(ClassificationLoss):
    """Objects of other classes are no negatives for rare classes.

    Cell (i, c) has the weight ``w_ic = 1 - E_i T_c (1 - [y_i = c])``, with ``E_i`` = 1 for foreground rows and 0 for
    background, and ``T_c`` = 1 for classes whose image frequency is below ``threshold``.

    * ``form="sigmoid"``: ``sum_c w_ic BCE(z_ic, [y_i = c])``, averaged over the rows with weight > 0. C outputs, none
      for the background, whose rows are negatives for every class.
    * ``form="softmax"``: ``-log(e^z_y / sum_k w_ik e^z_k)`` over C classes and the background, averaged likewise.

    A class that ``class_mask`` takes out of a row contributes nothing to it (softmax: leaves the denominator), unless
    it is the row's label.

    Args:
        image_frequency: share of the training images that show each class, (C,), in [0, 1].
        threshold: lambda. Published 0.00176; the code has 0.00177 for LVIS v0.5, which is exactly the 915 rare and
            common classes, and 0.0011 for v1 (815 classes).
        form: ``"sigmoid"``, used for detection, or ``"softmax"``.
        prior: probability that every sigmoid output starts from, in (0, 1); published 0.001.

    Shapes:
        logits (N, C), or (N, C + 1) in the softmax form; labels (N,) in 0..C with C = background; class_mask (N, C)
        bool. Row losses (N,), in float32 or float64, >= 0. Scores (N, C + 1): sigmoids and a background column of 0,
        or the softmax.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        image_frequency: Tensor,
        *,
        threshold: float = 0.00177,
        form: Literal["sigmoid", "softmax"] = "sigmoid",
        prior: float = 0.001,
    ) -> None:
        super().__init__(num_classes=len(image_frequency))
        if form not in ("sigmoid", "softmax"):
            raise ValueError(f'form must be "sigmoid" or "softmax", got {form!r}')
        self.form = form
        if form == "sigmoid":
            self.heads = frozenset({"roi", "dense"})  # type: ignore[misc]  # wider than the class: no softmax there
        self._bias_prior = prior_logit(prior)
        self.tail: Tensor
        self.register_buffer("tail", tail_classes(image_frequency, threshold), persistent=False)

    def acts_on(self) -> str:
        """How many classes are tail classes."""
        return f"{int(self.tail.sum())} of {self.num_classes} classes spared the objects of others"

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
        if self.form == "softmax":
            tail = F.pad(self.tail, (0, 1), value=False)
            spared = tail_negatives(labels, tail, self.num_classes, logits.dtype, scale=_LOG_ZERO)
            # logits this low are exactly 0 in every denominator
            return masked_cross_entropy(spared.add_(logits), labels, class_mask)
        target = target_cells(labels, self.num_classes, logits.dtype)
        weight = tail_negatives(labels, self.tail, self.num_classes, logits.dtype, scale=-1.0).add_(1.0)
        cells = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none")
        if class_mask is not None:
            cells = cells.masked_fill(left_out_cells(labels, class_mask, self.num_classes), 0.0)
        return cells.sum(dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        if self.form == "softmax":
            return full_precision(logits).softmax(dim=1)
        return sigmoid_scores(logits, self.num_classes)


def tail_classes(image_frequency: Tensor, threshold: float) -> Tensor:
    """(C,) bool: the classes whose image frequency is below ``threshold``.

    Raises:
        ValueError: a frequency outside [0, 1] or a negative threshold.
    """
    if (image_frequency < 0).any() or (image_frequency > 1).any():
        raise ValueError(f"image_frequency must lie in [0, 1], got {image_frequency.min()} to {image_frequency.max()}")
    if threshold < 0:
        raise ValueError(f"threshold must be >= 0, got {threshold}")
    return image_frequency.double() < threshold


def tail_negatives(labels: Tensor, tail: Tensor, background: int, dtype: torch.dtype, *, scale: float) -> Tensor:
    """``scale`` at the cells of tail columns in foreground rows of another class, else 0; (N, K) for ``tail`` (K,)."""
    foreground = scale * (labels < background).to(dtype)
    cells = foreground.unsqueeze(1) * tail.to(dtype)
    # rows of the background are 0 everywhere
    return cells.scatter_(1, labels.clamp(max=tail.shape[0] - 1).unsqueeze(1), 0.0)
