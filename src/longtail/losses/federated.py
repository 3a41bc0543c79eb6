"""Federated loss (Zhou et al., Probabilistic two-stage detection, 2021, section 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import BatchLoss
from longtail.losses.cells import counted_rows, full_precision, label_counts, left_out_cells, target_cells
from longtail.losses.sigmoid import prior_logit, sigmoid_scores


class FederatedLoss(BatchLoss):
    """Binary cross-entropy over a random subset of the classes, the same for all rows of a batch.

    The subset holds every class present among the rows with weight > 0, and classes drawn without replacement, with
    probabilities proportional to ``m_c^power``, until there are ``subset`` of them. The background counts as one of the
    present classes if it has a row, though it has no cell. Where more than ``subset`` are present, all of them stay and
    none is drawn. Classes without any training image are not drawn. The sum over the subset is averaged over the rows
    with weight > 0.

    Drawing needs a ``generator``; without one all classes take part. In several processes each draws for its own batch.

    A class that ``class_mask`` takes out of a row contributes nothing to it, unless it is the row's label.

    Args:
        image_counts: training images m_c that show each class, (C,), >= 0.
        subset: classes per batch, at least 1; published 50.
        power: of the image counts in the draw, >= 0; published 0.5.
        prior: probability that every output starts from, in (0, 1); published 0.01.

    State:
        ``log_share`` (C,), constant: logarithms of the draw's weights.

    Shapes:
        logits (N, C + 1), of which the last is unused; labels (N,) in 0..C with C = background; class_mask (N, C)
        bool. Row losses (N,), in float32 or float64, >= 0. Scores (N, C + 1): sigmoids and a background column of 0.

    Raises:
        ValueError: an argument outside its range.
    """

    heads = frozenset({"roi", "dense", "query"})

    def __init__(self, image_counts: Tensor, *, subset: int = 50, power: float = 0.5, prior: float = 0.01) -> None:
        super().__init__(num_classes=len(image_counts))
        if (image_counts < 0).any():
            raise ValueError(f"image_counts must be >= 0, got min {image_counts.min()}")
        if subset < 1 or power < 0:
            raise ValueError(f"subset must be at least 1 and power at least 0, got {subset} and {power}")
        self.subset = subset
        self._bias_prior = prior_logit(prior)
        self.log_share: Tensor
        counts = image_counts.double()
        log_share = torch.where(counts > 0, power * counts.clamp(min=1).log(), float("-inf"))
        self.register_buffer("log_share", log_share, persistent=False)

    def acts_on(self) -> str:
        """How many classes take part in a step."""
        return f"{min(self.subset, self.num_classes)} of {self.num_classes} classes a step, more if more are present"

    @property
    def bias_prior(self) -> float:
        """Logit of ``prior``."""
        return self._bias_prior

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
        logits = full_precision(logits)[:, : self.num_classes]
        target = target_cells(labels, self.num_classes, logits.dtype)
        drawn = None
        if generator is not None:
            drawn = self.draw(labels, counted_rows(labels, weight), generator).to(logits.dtype)
        cells = F.binary_cross_entropy_with_logits(logits, target, drawn, reduction="none")
        if class_mask is not None:
            cells = cells.masked_fill(left_out_cells(labels, class_mask, self.num_classes), 0.0)
        return cells.sum(dim=1)

    def draw(self, labels: Tensor, counted: Tensor, generator: torch.Generator) -> Tensor:
        """(C,) bool: the subset for a batch of labels (N,), of which only the ``counted`` (N,) rows are looked at."""
        present = label_counts(labels, counted, self.num_classes + 1) > 0
        classes = present[: self.num_classes]
        # with Gumbel noise on the logarithms, the largest are a draw without replacement; nothing waits for a count
        uniform = torch.rand(self.num_classes, generator=generator, device=labels.device, dtype=torch.float64)
        key = self.log_share - (-uniform.clamp(min=1e-300).log()).log()
        rank = key.masked_fill(classes, float("-inf")).argsort(descending=True).argsort()
        drawn = (rank < self.subset - present.sum()) & (self.log_share > float("-inf"))
        return classes | drawn

    def scores(self, logits: Tensor) -> Tensor:
        return sigmoid_scores(logits[:, : self.num_classes], self.num_classes)
