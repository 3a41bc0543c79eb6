"""Label-distribution-aware margins with deferred re-weighting (Cao et al., NeurIPS 2019, eq. 10 to 13)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import ClassificationLoss
from longtail.losses.cells import full_precision
from longtail.losses.class_balanced import effective_number_weights
from longtail.losses.softmax import masked_cross_entropy


class LDAMLoss(ClassificationLoss):
    """Softmax cross-entropy on ``s * (z - m_y e_y)``: the label's own logit is lowered by a margin, larger for rare
    classes.

    ``m_c = max_margin * n_c^(-1/4) / max_k n_k^(-1/4)``; background rows have margin 0. The logits z must be cosines:
    pair it with a cosine classifier of scale 1 without learnt lengths; ``s`` is applied here.

    Deferred re-weighting is the same loss with ``beta`` > 0 in a later stage of training: rows are weighted by
    :func:`~longtail.losses.class_balanced.effective_number_weights` of their class, background rows by 1, and the sum
    is divided by the number of rows with weight > 0. (The authors' code divides by the sum of the weights.)

    Args:
        instance_counts: training instances per class, (C,), >= 0. A class with none is treated as having one.
        max_margin: margin of the rarest class, >= 0; published 0.5.
        scale: s, positive; published 30.
        beta: of the re-weighting, in [0, 1); 0 = none, published 0.9999 in the last fifth of training.

    State:
        ``margin`` and ``row_weight`` (C + 1,), constant, background last.

    Shapes:
        logits (N, C + 1), cosines in [-1, 1], background last; labels (N,) in 0..C with C = background; class_mask
        (N, C) bool. Row losses (N,), >= 0. Scores (N, C + 1): softmax of ``s * z``, every row sums to 1.

    Raises:
        ValueError: a negative count, no class, or an argument outside its range.
    """

    classifiers = frozenset({"cosine"})

    def __init__(
        self, instance_counts: Tensor, *, max_margin: float = 0.5, scale: float = 30.0, beta: float = 0.0
    ) -> None:
        super().__init__(num_classes=len(instance_counts))
        if max_margin < 0 or scale <= 0:
            raise ValueError(f"max_margin must be >= 0 and scale positive, got {max_margin} and {scale}")
        self.scale = scale
        weight = effective_number_weights(instance_counts, beta)
        rarity = instance_counts.double().clamp(min=1).pow(-0.25)
        self.margin: Tensor
        self.row_weight: Tensor
        self.register_buffer("margin", F.pad(max_margin * rarity / rarity.max(), (0, 1)).float(), persistent=False)
        self.register_buffer("row_weight", F.pad(weight, (0, 1), value=1.0).float(), persistent=False)

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
        margin = self.margin.to(logits.dtype)[labels].unsqueeze(1)
        lowered = logits.scatter_add(1, labels.unsqueeze(1), -margin).mul_(self.scale)
        return masked_cross_entropy(lowered, labels, class_mask) * self.row_weight[labels]

    def scores(self, logits: Tensor) -> Tensor:
        return (self.scale * full_precision(logits)).softmax(dim=1)
