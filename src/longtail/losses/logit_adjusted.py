"""Logit adjustment: softmax cross-entropy that knows the class prior (Menon et al., ICLR 2021, eq. 10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import TEST_TIME_CLASSIFIERS, ClassificationLoss
from longtail.losses.cells import full_precision
from longtail.losses.softmax import masked_cross_entropy


class LogitAdjustedLoss(ClassificationLoss):
    """Cross-entropy on ``z_c + tau * log(pi_c)``, so that a rare class needs a larger logit to be called learnt.

    ``pi_c = n_c / sum(n)`` over foreground classes, rescaled to geometric mean 1, so that the background logit, which
    is left alone, keeps its weight against the foreground as a whole. The paper has no background. Scores come from
    the logits without the offset. The form for finished models is :func:`longtail.models.adjust_logits`.

    Args:
        instance_counts: training instances per class, (C,), >= 0. A class with none is treated as having one.
        tau: strength, >= 0; 0 is plain cross-entropy, 1 the published value.

    State:
        ``offset`` (C + 1,), constant, background 0.

    Shapes:
        logits (N, C + 1), background last; labels (N,) in 0..C with C = background; class_mask (N, C) bool. Row
        losses (N,), >= 0. Scores (N, C + 1), every row sums to 1.

    Raises:
        ValueError: a negative count, no class, or tau < 0.
    """

    classifiers = TEST_TIME_CLASSIFIERS
    adjustable = True

    def __init__(self, instance_counts: Tensor, *, tau: float = 1.0) -> None:
        super().__init__(num_classes=len(instance_counts))
        if tau < 0:
            raise ValueError(f"tau must be >= 0, got {tau}")
        self.offset: Tensor
        self.register_buffer(
            "offset", F.pad(tau * centred_log_counts(instance_counts), (0, 1)).float(), persistent=False
        )

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        class_mask: Tensor | None = None,
        update_state: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return masked_cross_entropy(full_precision(logits) + self.offset, labels, class_mask)

    def scores(self, logits: Tensor) -> Tensor:
        return full_precision(logits).softmax(dim=1)


def centred_log_counts(instance_counts: Tensor) -> Tensor:
    """``log n_c`` minus its mean over the classes, (C,) float64; no instances count as one.

    Raises:
        ValueError: a negative count.
    """
    if (instance_counts < 0).any():
        raise ValueError(f"instance_counts must be >= 0, got {instance_counts.min()}")
    log_count = instance_counts.double().clamp(min=1).log()
    return log_count - log_count.mean()
