"""Seesaw loss (Wang et al., CVPR 2021, eqs. 4 to 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.losses.base import CERTAIN, TEST_TIME_CLASSIFIERS, BatchLoss
from longtail.losses.cells import counted_rows, full_precision, label_counts, left_out_cells
from longtail.losses.objectness_softmax import objectness_cross_entropy, objectness_scores
from longtail.losses.state import sum_over_ranks


class SeesawLoss(BatchLoss):
    """Objects of frequent classes push rarer classes down less, unless they are mistaken for them.

    Object or background is decided by two outputs of their own. Among the C class logits, a row of class i changes
    logit j != i to ``z_j + log(M_ij K_ij)``, and a softmax cross-entropy follows:

    * mitigation ``M_ij = min(1, N_j / N_i)^p``, N = rows of the class seen in training so far, at least 1;
    * compensation ``K_ij = max(1, P_j / max(P_i, eps))^q``, P = softmax of the unchanged class logits, detached.

    The rows of this batch are counted before the loss is computed. Objectness is learnt from all rows, the class from
    foreground rows only, and both sums are divided by the number of *all* rows with weight > 0. With p = q = 0 it is
    :class:`longtail.losses.ObjectnessSoftmax`.

    A class that ``class_mask`` takes out of a foreground row leaves the denominator of both softmaxes over classes,
    unless it is the row's label. Objectness is not touched by it.

    It goes with the classifier ``normed_linear`` and the mask predictor ``normalised``.

    Args:
        num_classes: foreground classes C, at least 1.
        p: strength of the mitigation, >= 0; published 0.8.
        q: strength of the compensation, >= 0; published 2.
        eps: smallest P_i in the compensation, > 0; published 0.01.
        sync: whether the rows of all processes are counted; False counts each process's own, as released code does.

    State:
        ``counts`` (C,), int64, from 0: foreground rows seen; shared by all processes if ``sync``. Released code counts
        in float32, which stops at 2^24.

    Shapes:
        logits (N, C + 2): C class logits, then objectness [foreground, background]; labels (N,) in 0..C with C =
        background; class_mask (N, C) bool. Row losses (N,), in float32 or float64, >= 0. Scores (N, C + 1):
        ``P(class) * P(foreground)``, then ``P(background)``; every row sums to 1.

    Raises:
        ValueError: an argument outside its range.
    """

    classifiers = TEST_TIME_CLASSIFIERS
    adjustable = True

    def __init__(
        self, num_classes: int, *, p: float = 0.8, q: float = 2.0, eps: float = 0.01, sync: bool = True
    ) -> None:
        super().__init__(num_classes=num_classes)
        if p < 0 or q < 0 or eps <= 0:
            raise ValueError(f"p and q must be >= 0 and eps above 0, got {p}, {q} and {eps}")
        self.p = p
        self.q = q
        self.eps = eps
        self.sync = sync
        self.per_rank = frozenset() if sync else frozenset({"counts"})
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    def running_shares(self) -> dict[str, Tensor]:
        """``mitigated_cells``: of the class cells ``j != i`` of all foreground rows seen, those whose ``M_ij`` is below
        1 with the counts as they are. What is compensated depends on the scores of each step, which are not kept."""
        if self.p == 0 or self.num_classes == 1:
            return {}
        counts = self.counts.clamp(min=1)
        rarer = torch.searchsorted(counts.sort().values, counts)  # classes with a smaller count, (C,)
        cells = self.counts.sum().clamp(min=1) * (self.num_classes - 1)
        return {"mitigated_cells": (self.counts * rarer).sum().double() / cells}

    @property
    def num_logits(self) -> int:
        """C + 2: the classes, foreground, background."""
        return self.num_classes + 2

    @property
    def no_background(self) -> tuple[float, ...]:
        """Foreground for certain."""
        return 0.0, -CERTAIN

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
        if update_state:
            own = label_counts(labels, counted_rows(labels, weight), self.num_classes)
            self.counts += sum_over_ranks(own, sync=self.sync)
        logits = full_precision(logits)
        background = labels == self.num_classes
        # background rows get class 0 only so that every row has a valid label; their term is dropped
        some_class = labels.masked_fill(background, 0)
        if class_mask is not None:
            logits = logits.masked_fill(left_out_cells(some_class, class_mask, self.num_logits), float("-inf"))
        log_factor = self._log_factor(logits.detach()[:, : self.num_classes], some_class)
        return objectness_cross_entropy(logits, some_class, background, added=log_factor)

    def _log_factor(self, classes: Tensor, labels: Tensor) -> Tensor:
        """``log(M_ij K_ij)`` for every row of class i and every j, (N, C); 0 at j = i."""
        own = labels.unsqueeze(1)
        log_p = classes.log_softmax(dim=1)
        compensation = log_p.sub_(log_p.gather(1, own).exp().clamp(min=self.eps).log()).clamp_(min=0)
        log_count = self.p * self.counts.clamp(min=1).to(classes.dtype).log()
        mitigation = (log_count - log_count[own]).clamp_(max=0)
        return mitigation.add_(compensation, alpha=self.q).scatter_(1, own, 0.0)

    def scores(self, logits: Tensor) -> Tensor:
        return objectness_scores(logits, self.num_classes)
