"""The equilibrium loss of LOCE (Feng et al., ICCV 2021, equations 1 and 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.losses.base import TEST_TIME_CLASSIFIERS, ClassificationLoss
from longtail.losses.cells import full_precision
from longtail.losses.mean_score import MeanScore
from longtail.losses.softmax import masked_cross_entropy


class EquilibriumLoss(ClassificationLoss):
    """Softmax cross-entropy with a margin ``log(s_j / s_y)`` between the label y and every other class j.

    That is cross-entropy of ``z + log s``: a class that is scored low is pushed down less and has to win by more.
    Here it is computed in this form, which cannot overflow. No gradient goes through ``s``, and equal values
    give plain cross-entropy exactly. Scores are a plain softmax.

    Args:
        guide: where s comes from: the running scores, which somebody else keeps up to date (see
            :class:`~longtail.losses.MeanScore`), or training objects per class (C,), >= 0, which is the paper's rival
            "P(y)"; classes without any count as 1, as the background does.

    State: that of ``guide``.

    Shapes:
        logits (N, C + 1), background last; labels (N,) in 0..C with C = background; class_mask (N, C) bool.
        Row losses (N,), >= 0. Scores (N, C + 1), every row sums to 1.

    Raises:
        ValueError: counts that are not one number >= 0 per class.
    """

    classifiers = TEST_TIME_CLASSIFIERS
    adjustable = True

    prior: Tensor | None

    def __init__(self, guide: MeanScore | Tensor) -> None:
        counts = None if isinstance(guide, MeanScore) else torch.as_tensor(guide)
        if counts is not None and (counts.ndim != 1 or bool((counts < 0).any())):
            raise ValueError(f"counts must be one number >= 0 per class, got shape {tuple(counts.shape)}")
        super().__init__(num_classes=guide.num_classes if isinstance(guide, MeanScore) else guide.shape[0])
        self.guide = guide if isinstance(guide, MeanScore) else None
        prior = None if counts is None else torch.cat([counts.double().clamp(min=1), torch.ones(1).double()])
        self.register_buffer("prior", prior, persistent=False)

    @property
    def margins(self) -> Tensor:
        """log s (C + 1,), background last; float64 while counts guide."""
        return (self.guide.value if self.guide is not None else self._prior()).log()

    def _prior(self) -> Tensor:
        assert self.prior is not None
        return self.prior

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
        margins = self.margins
        shift = (margins - margins[-1]).to(logits.dtype)  # equal values leave the logits as they are, bit for bit
        return masked_cross_entropy(logits + shift, labels, class_mask)

    def scores(self, logits: Tensor) -> Tensor:
        return full_precision(logits).softmax(dim=1)
