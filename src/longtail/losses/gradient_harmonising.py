"""Gradient harmonising mechanism, GHM-C and GHM-R (Li et al., AAAI 2019, eqs. 5 to 14)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses.base import BatchLoss, BoxLoss
from longtail.losses.cells import counted_rows, full_precision, left_out_cells, target_cells
from longtail.losses.sigmoid import prior_logit, sigmoid_scores
from longtail.losses.state import sum_over_ranks


class GradientDensity(nn.Module):
    """How crowded the gradients are: a histogram of values in [0, 1], in bins of equal width.

    With ``momentum`` the count of a bin that is not empty now is ``momentum * its old count + (1 - momentum) * count``;
    the counts of bins that are empty now stay as they are.

    Args:
        bins: number of bins, at least 1.
        momentum: in [0, 1).
        sync: whether counts are summed over processes in calls that may change the state; if not, the state is each
            process's own.

    State:
        ``counts`` (bins,), float64, from 0.
    """

    def __init__(self, *, bins: int, momentum: float, sync: bool) -> None:
        super().__init__()
        if bins < 1 or not 0 <= momentum < 1:
            raise ValueError(f"bins must be at least 1 and momentum in [0, 1), got {bins} and {momentum}")
        self.bins = bins
        self.momentum = momentum
        self.sync = sync
        self.per_rank = frozenset() if sync else frozenset({"counts"})
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, values: Tensor, valid: Tensor, *, update_state: bool) -> Tensor:
        """``1 / (count of the value's bin * number of bins that are not empty)``, 0 where not ``valid``.

        Args:
            values: any shape, in [0, 1]; 1 is in the last bin.
            valid: bool, of the same shape; other values are not counted.
        """
        # a value that is not valid may be anything, also no number
        bin_of = (values.masked_fill(~valid, 0.0) * self.bins).long().clamp(max=self.bins - 1)
        found = torch.zeros(self.bins, dtype=torch.int64, device=values.device)
        found = found.scatter_add(0, bin_of.flatten(), valid.flatten().long())
        if update_state:
            found = sum_over_ranks(found, sync=self.sync)
        filled, found = found > 0, found.double()
        counts = torch.where(filled, self.momentum * self.counts + (1 - self.momentum) * found, self.counts)
        if update_state:
            self.counts.copy_(counts)
        density = torch.where(filled, 1 / (counts * filled.sum()), 0.0)
        return density.to(values.dtype)[bin_of].masked_fill(~valid, 0.0)


class GHMClassification(BatchLoss):
    """Binary cross-entropy in which cells weigh less the more others have a gradient of the same size.

    With ``g = |sigmoid(z) - t|`` (detached), a cell weighs ``total / (count of its bin * bins that are not empty)``.
    The weighted sum over all cells is divided by their number ``total``, which cancels: every bin contributes the mean
    of its cells, divided by the number of bins. Cells of rows with weight 0 and those that ``class_mask`` takes out are
    neither counted nor part of the loss. A row's weight above 0 multiplies its loss and does not enter the counts.

    Args:
        num_classes: foreground classes C, at least 1.
        bins: number of bins; published 10 (released configuration: 30).
        momentum: of the counts; published 0 (released configuration: 0.75).
        prior: probability that every output starts from, in (0, 1); 0.01 as for the focal loss.
        sync: whether the processes' counts are summed while training. Released code counts per process.

    State:
        ``density.counts`` (bins,), float64, from 0; shared by all processes if ``sync``.

    Shapes:
        logits (N, C); labels (N,) in 0..C with C = background; class_mask (N, C) bool. Row losses (N,), in float32 or
        float64, >= 0. Scores (N, C + 1): sigmoids and a background column of 0.

    Raises:
        ValueError: an argument outside its range.
    """

    heads = frozenset({"dense"})

    def __init__(
        self, num_classes: int, *, bins: int = 10, momentum: float = 0.0, prior: float = 0.01, sync: bool = True
    ) -> None:
        super().__init__(num_classes=num_classes)
        self._bias_prior = prior_logit(prior)
        self.density = GradientDensity(bins=bins, momentum=momentum, sync=sync)

    @property
    def num_logits(self) -> int:
        """C."""
        return self.num_classes

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
        logits = full_precision(logits)
        target = target_cells(labels, self.num_classes, logits.dtype)
        valid = counted_rows(labels, weight).unsqueeze(1).expand_as(target)
        total = self.normaliser_count(labels, weight)
        if class_mask is not None:
            valid = valid & ~left_out_cells(labels, class_mask, self.num_classes)
        if update_state:
            total = sum_over_ranks(torch.as_tensor(total, device=logits.device), sync=self.density.sync)
        gradient = logits.detach().sigmoid().sub_(target).abs_()
        share = self.density(gradient, valid, update_state=update_state)
        cells = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return torch.where(valid, cells * share, 0.0).sum(dim=1) * total

    def scores(self, logits: Tensor) -> Tensor:
        return sigmoid_scores(logits, self.num_classes)

    def normaliser_count(self, labels: Tensor, weight: Tensor | None) -> Tensor | float:
        """Cells of the rows with weight > 0."""
        return super().normaliser_count(labels, weight) * self.num_classes

    def dense_normaliser_count(self, labels: Tensor, weight: Tensor | None) -> Tensor | float:
        """The same: the weights of the cells are relative to their number."""
        return self.normaliser_count(labels, weight)


class GHMRegression(BoxLoss):
    """``sqrt(d^2 + mu^2) - mu`` on encoded offsets, weighted by how many have a gradient of the same size.

    The gradient is ``g = |d| / sqrt(d^2 + mu^2)``. An offset weighs ``total / (count of its bin * bins that are not
    empty)``, with ``total`` the number of boxes with weight > 0; others are not counted. Divided by that number, as in
    the paper, every bin contributes the mean of its offsets, divided by the number of bins; region heads divide by all
    their regions instead. A weight above 0 multiplies the box's loss and does not enter the counts.

    Args:
        mu: where the loss turns from quadratic to linear, > 0; published 0.02.
        bins: number of bins; published 10.
        momentum: of the counts; published 0 (released configuration: 0.7, with loss weight 10).
        sync: whether the processes' counts are summed while training. Released code counts per process.

    State:
        ``density.counts`` (bins,), float64, from 0; shared by all processes if ``sync``.

    Shapes:
        predicted and target (P, 4), encoded offsets (dx, dy, dw, dh). Row losses (P,), in float32 or float64, >= 0.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(self, *, mu: float = 0.02, bins: int = 10, momentum: float = 0.0, sync: bool = True) -> None:
        super().__init__()
        if mu <= 0:
            raise ValueError(f"mu must be above 0, got {mu}")
        self.mu = mu
        self.density = GradientDensity(bins=bins, momentum=momentum, sync=sync)

    def row_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        return self.batch_losses(predicted, target, weight=None, update_state=False)

    def batch_losses(self, predicted: Tensor, target: Tensor, *, weight: Tensor | None, update_state: bool) -> Tensor:
        difference = full_precision(predicted) - full_precision(target)
        size = (difference.square() + self.mu**2).sqrt()
        boxes = torch.ones_like(difference[:, 0], dtype=torch.bool) if weight is None else weight > 0
        total = boxes.sum()
        if update_state:
            total = sum_over_ranks(total, sync=self.density.sync)
        valid = boxes.unsqueeze(1).expand_as(difference)
        share = self.density((difference / size).detach().abs(), valid, update_state=update_state)
        return torch.where(valid, (size - self.mu) * share, 0.0).sum(dim=1) * total
