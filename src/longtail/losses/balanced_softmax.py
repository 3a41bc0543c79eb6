"""Balanced Softmax: logits shifted by the class prior while training (Ren et al., NeurIPS 2020, eq. 4)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import TEST_TIME_CLASSIFIERS, ClassificationLoss
from longtail.losses.cells import full_precision, left_out_cells, target_cells
from longtail.losses.logit_adjusted import centred_log_counts
from longtail.losses.sigmoid import prior_logit, sigmoid_scores
from longtail.losses.softmax import masked_cross_entropy

BACKGROUND_SHARE = 3
"""In the pseudo-count variant the background counts as so many times all instances together."""
LEAST_FREQUENCY = 1e-5
"""Image frequencies are kept this far from 0 and 1, where their log-odds are infinite."""


class BalancedSoftmaxLoss(ClassificationLoss):
    """Cross-entropy on logits to which the prior of their class has been added.

    * ``form="softmax"``: softmax cross-entropy on ``z_c + log n_c``. The paper has no background; with
      ``background="none"`` nothing is added to its logit and the foreground's priors are rescaled to geometric mean 1
      (then the loss is :class:`LogitAdjustedLoss` with tau 1), with ``"pseudo_count"`` it counts as three times all
      instances.
    * ``form="sigmoid"``, which the authors' code uses on LVIS: for foreground rows binary cross-entropies on
      ``z_c - log((1 - f_c) / f_c)`` with the image frequency ``f_c``, for background rows on ``z_c``; the sum over
      classes and rows is divided by the rows with weight > 0. There is no background output.

    Scores come from the logits without the prior. The logits handed over are not modified.

    Args:
        instance_counts: training instances per class, (C,), >= 0; softmax form. None are treated as one.
        image_frequency: share of the training images with objects that show the class, (C,), in [0, 1]; sigmoid form.
            Kept within [1e-5, 1 - 1e-5].
        form: ``"softmax"`` or ``"sigmoid"``.
        background: ``"none"`` or ``"pseudo_count"``; softmax form.
        prior: probability that every sigmoid output starts from, in (0, 1).

    State:
        ``offset`` (number of logits,), constant.

    Shapes:
        logits (N, C + 1), background last, or (N, C) in the sigmoid form; labels (N,) in 0..C with C = background;
        class_mask (N, C) bool. Row losses (N,), >= 0. Scores (N, C + 1): the softmax, or sigmoids and a background
        column of 0.

    Raises:
        ValueError: a negative count, a frequency outside [0, 1], numbers of classes that differ, or an unknown option.
    """

    def __init__(
        self,
        instance_counts: Tensor,
        image_frequency: Tensor,
        *,
        form: Literal["softmax", "sigmoid"] = "softmax",
        background: Literal["none", "pseudo_count"] = "none",
        prior: float = 0.01,
    ) -> None:
        super().__init__(num_classes=len(instance_counts))
        if len(image_frequency) != len(instance_counts):
            raise ValueError(f"{len(instance_counts)} instance counts, but {len(image_frequency)} image frequencies")
        if ((image_frequency < 0) | (image_frequency > 1)).any():
            raise ValueError("image_frequency must lie in [0, 1]")
        if form not in ("softmax", "sigmoid"):
            raise ValueError(f'form must be "softmax" or "sigmoid", got {form!r}')
        if background not in ("none", "pseudo_count"):
            raise ValueError(f'background must be "none" or "pseudo_count", got {background!r}')
        self.form = form
        self._bias_prior = prior_logit(prior)
        if form == "sigmoid":
            offset = image_frequency.double().logit(eps=LEAST_FREQUENCY)
        else:
            offset = F.pad(centred_log_counts(instance_counts), (0, 1))
            if background == "pseudo_count":
                counts = instance_counts.double().clamp(min=1)
                offset[-1] = (BACKGROUND_SHARE * counts.sum()).log() - counts.log().mean()
            self.classifiers = TEST_TIME_CLASSIFIERS  # type: ignore[misc]
            self.adjustable = True  # type: ignore[misc]
        self.offset: Tensor
        self.register_buffer("offset", offset.float(), persistent=False)

    @property
    def num_logits(self) -> int:
        """C + 1 in the softmax form, C in the sigmoid form."""
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
            return masked_cross_entropy(logits + self.offset, labels, class_mask)
        foreground = (labels < self.num_classes).to(logits.dtype)
        shifted = logits + foreground[:, None] * self.offset
        target = target_cells(labels, self.num_classes, logits.dtype)
        cells = F.binary_cross_entropy_with_logits(shifted, target, reduction="none")
        if class_mask is not None:
            cells = cells.masked_fill(left_out_cells(labels, class_mask, self.num_classes), 0.0)
        return cells.sum(dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        if self.form == "softmax":
            return full_precision(logits).softmax(dim=1)
        return sigmoid_scores(logits, self.num_classes)
