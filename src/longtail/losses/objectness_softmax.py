"""Objectness and class in two separate softmaxes: the head of Seesaw loss without its re-weighting."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.losses.base import CERTAIN, TEST_TIME_CLASSIFIERS, ClassificationLoss
from longtail.losses.cells import full_precision, left_out_cells
from longtail.losses.column_groups import group_cross_entropy


class ObjectnessSoftmax(ClassificationLoss):
    """Object or background first, then which class: Seesaw loss (Wang et al., CVPR 2021) with p = q = 0.

    ``L = -log softmax(o)_[y is background] - [y is a class] * log softmax(z)_y``: the two-way objectness is learnt
    from all rows, the class only from foreground rows, and *both* sums are divided by the number of all rows with
    weight > 0. A batch without foreground has no class term.

    A class that ``class_mask`` takes out of a foreground row leaves the denominator of the class softmax, unless it
    is the row's label. Objectness is not touched by it.

    Args:
        num_classes: foreground classes C, at least 1.

    Shapes:
        logits (N, C + 2): C class logits z, then objectness o = [foreground, background]; labels (N,) in 0..C with
        C = background; class_mask (N, C) bool. Row losses (N,), in float32 or float64, >= 0. Scores (N, C + 1):
        ``P(class) * P(foreground)``, then ``P(background)``; every row sums to 1.

    Raises:
        ValueError: ``num_classes`` below 1.
    """

    classifiers = TEST_TIME_CLASSIFIERS
    adjustable = True

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes=num_classes)

    @property
    def num_logits(self) -> int:
        """C + 2: the classes, foreground, background."""
        return self.num_classes + 2

    @property
    def no_background(self) -> tuple[float, ...]:
        """Foreground for certain."""
        return 0.0, -CERTAIN

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
        background = labels == self.num_classes
        # background rows get class 0 only so that every row has a valid label; their term is dropped
        some_class = labels.masked_fill(background, 0)
        if class_mask is not None:
            logits = logits.masked_fill(left_out_cells(some_class, class_mask, self.num_logits), float("-inf"))
        return objectness_cross_entropy(logits, some_class, background)

    def scores(self, logits: Tensor) -> Tensor:
        return objectness_scores(logits, self.num_classes)


def objectness_cross_entropy(
    logits: Tensor, labels: Tensor, background: Tensor, *, added: Tensor | None = None
) -> Tensor:
    """Sum of the two cross-entropies of every row, (N,), without that of the class in ``background`` rows.

    Args:
        logits: (N, C + 2): C class logits, then [foreground, background].
        labels: (N,) in 0..C-1, anything in background rows.
        background: (N,) bool.
        added: (N, C), constants added to the class logits; None = 0.
    """
    targets = torch.stack([labels, background.long()], dim=1)
    both = group_cross_entropy(logits, targets, [logits.shape[1] - 2, 2], added=added)
    class_term, objectness = both.unbind(dim=1)
    return objectness + class_term.masked_fill(background, 0.0)


def objectness_scores(logits: Tensor, num_classes: int) -> Tensor:
    """(N, C + 1) from (N, C + 2) logits: ``P(class) * P(foreground)``, then ``P(background)``; rows sum to 1."""
    logits = full_precision(logits)
    objectness = logits[:, num_classes:].softmax(dim=1)
    classes = logits[:, :num_classes].softmax(dim=1)
    return torch.cat([classes * objectness[:, :1], objectness[:, 1:]], dim=1)
