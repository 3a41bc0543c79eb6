"""Bucketed class re-weighting of Libra R-CNN (BCR; journal version, section 3.3.3, equations 20-22)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.balanced_l1 import steepness
from longtail.losses.base import ClassificationLoss
from longtail.losses.cells import full_precision, left_out_cells, target_cells
from longtail.losses.lgr_cross_entropy import sigmoid_gradient_weight
from longtail.losses.sigmoid import prior_logit, sigmoid_scores


class BucketedReweightingLoss(ClassificationLoss):
    """Binary cross-entropy in which objects of other classes push rare classes down less.

    For a row of class t: ``-sum_i w_i log p_i``, p_i the probability of the right answer for class i and ``w_t = 1``.
    The other weights come from the classes' counts: the logarithms of the counts, from smallest to largest, are cut
    into ``num_buckets`` equal ranges; with ``x_i`` = bucket / (number of buckets - 1), ``w_i = 1 / (1 + exp(-(x_i - a)
    / tau))``. The background output always has weight 1. The sum over classes is divided by the rows with weight > 0.

    Classes without a count are put in the lowest bucket and do not move the ends of the range; :attr:`unseen` says
    which. With one bucket, or all counts above 0 equal, all weights are 1, those of classes without a count too.

    A class that ``class_mask`` takes out of a row contributes nothing to it, unless it is the row's label.

    Args:
        num_classes: foreground classes C, at least 1.
        class_counts: (C,) training images of every class (published; before any repetition of images), or instances.
            Only ratios matter.
        num_buckets: S, at least 1.
        a: share of the range at which the weight is 1/2.
        tau: width of the step there, > 0.
        on_background: whether w also applies to background rows, the literal reading of equation 20. Otherwise
            background rows push all classes down fully, as in EQL, on which the paper builds.
        background_logit: an output of its own for the background; its target is 1 for background rows, and it plays no
            part at test time. Without it there are C outputs, as in EQL.
        prior: probability every output starts from, in (0, 1).
        lgr: every cell is also weighted by LGR's rho (see :class:`longtail.losses.LGRCrossEntropy`, sigmoid form).
        lgr_alpha, lgr_gamma: of that rho.

    Shapes:
        logits (N, C + 1), background last, or (N, C); labels (N,) in 0..C with C = background; class_mask (N, C) bool.
        Row losses (N,), in float32 or float64, >= 0. Scores (N, C + 1): the sigmoid of every logit; a missing
        background column is 0. Rows do not sum to 1.

    Attributes:
        bucket: (C,) int64 bucket of every class, 0..num_buckets - 1. Constant.
        class_weight: (C,) weight of every class as a negative, in 0..1. Constant.

    Raises:
        ValueError: arguments out of range.
    """

    bucket: Tensor
    class_weight: Tensor
    unseen: Tensor

    def __init__(
        self,
        num_classes: int,
        class_counts: Tensor,
        *,
        num_buckets: int = 10,
        a: float = 0.5,
        tau: float = 0.025,
        on_background: bool = False,
        background_logit: bool = True,
        prior: float = 0.001,
        lgr: bool = False,
        lgr_alpha: float = 0.8,
        lgr_gamma: float = 1.0,
    ) -> None:
        super().__init__(num_classes=num_classes)
        if class_counts.shape != (num_classes,):
            raise ValueError(f"class_counts must have shape ({num_classes},), got {tuple(class_counts.shape)}")
        if tau <= 0:
            raise ValueError(f"tau must be above 0, got {tau}")
        self.on_background = on_background
        self.background_logit = background_logit
        self.lgr = lgr
        self.lgr_alpha = lgr_alpha
        self.lgr_b = steepness(lgr_alpha, lgr_gamma)
        self._bias_prior = prior_logit(prior)
        bucket = frequency_buckets(class_counts, num_buckets)
        self.register_buffer("bucket", bucket, persistent=False)
        self.register_buffer(
            "class_weight", bucket_weights(bucket, num_buckets, a=a, tau=tau).float(), persistent=False
        )
        self.register_buffer("unseen", class_counts == 0, persistent=False)

    def acts_on(self) -> str:
        """How many classes other objects push down less."""
        low, unseen = int((self.class_weight < 0.5).sum()), int(self.unseen.sum())
        return f"{low} of {self.num_classes} classes weigh less than one half as negatives; {unseen} have no images"

    @property
    def num_logits(self) -> int:
        """C + 1 with a background logit, else C."""
        return self.num_classes + int(self.background_logit)

    @property
    def bias_prior(self) -> float:
        """Logit of ``prior``."""
        return self._bias_prior

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
        is_target = target_cells(labels, self.num_logits)
        target = is_target.to(logits.dtype)
        cells = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        cells = cells * self._weights(labels, is_target).to(logits.dtype)
        if self.lgr:
            cells = cells * sigmoid_gradient_weight(logits, target, alpha=self.lgr_alpha, b=self.lgr_b)
        if class_mask is not None:
            cells = cells.masked_fill(left_out_cells(labels, class_mask, self.num_logits), 0.0)
        return cells.sum(dim=1)

    def _weights(self, labels: Tensor, is_target: Tensor) -> Tensor:
        """(N, num_logits) weight of every cell."""
        weight = F.pad(self.class_weight, (0, int(self.background_logit)), value=1.0)
        full = is_target if self.on_background else is_target | (labels == self.num_classes).unsqueeze(1)
        return torch.where(full, 1.0, weight)

    def scores(self, logits: Tensor) -> Tensor:
        return sigmoid_scores(logits, self.num_classes)


def frequency_buckets(counts: Tensor, num_buckets: int) -> Tensor:
    """Equal ranges of the logarithm of the count, (C,) int64: 0 = smallest counts, and classes without any; the largest
    count is in ``num_buckets - 1``. If all counts above 0 are equal there is no range, and all classes are in the last
    bucket.

    Raises:
        ValueError: fewer than one bucket, or a count that is negative or not finite.
    """
    counts = counts.double()
    if num_buckets < 1 or bool((counts < 0).any()) or not bool(counts.isfinite().all()):
        raise ValueError(f"num_buckets must be at least 1 and counts finite and >= 0, got {num_buckets} and {counts}")
    seen = counts[counts > 0]
    if not len(seen) or seen.min() == seen.max():
        return torch.full(counts.shape, num_buckets - 1)
    low, high = seen.min().log(), seen.max().log()
    share = (counts.clamp(min=seen.min()).log() - low) / (high - low)
    return (num_buckets * share).long().clamp(0, num_buckets - 1)


def bucket_weights(bucket: Tensor, num_buckets: int, *, a: float, tau: float) -> Tensor:
    """``1 / (1 + exp(-(x - a) / tau))`` with ``x = bucket / (num_buckets - 1)``, (C,) float64; all 1 where
    all classes share a bucket."""
    if num_buckets == 1 or bool((bucket == bucket.max()).all()):
        return torch.ones(bucket.shape, dtype=torch.float64)
    return ((bucket.double() / (num_buckets - 1) - a) / tau).sigmoid()
