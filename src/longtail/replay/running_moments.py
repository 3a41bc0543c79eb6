"""Running mean and variance of the features of every class (FASA, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from longtail.losses.state import from_first, gather_rows

Moment = Literal["var", "std"]
SingleSample = Literal["zero", "skip"]


class RunningMoments(nn.Module):
    """A diagonal Gaussian per class, moved towards every batch that holds the class.

    The first batch with a class sets its mean and its unbiased variance; afterwards both are ``(1 - momentum) * old +
    momentum * new``. Classes that are not in the batch stay as they are.

    Args:
        num_classes: C, at least 1.
        feature_size: D, at least 1.
        momentum: share of the new batch, in (0, 1]; published 0.1.
        moment: what is averaged over the batches: ``"var"``, the variance, as the released code does, or ``"std"``, its
            square root, as the paper says.
        single_sample: a class with one row in a batch: ``"zero"`` averages a variance of 0 in, as the released code
            does; ``"skip"`` leaves the variance as it is, and the first batch with more rows sets it.
        sync: whether the rows of all processes are one batch; otherwise every process keeps its own moments.

    Shapes:
        features (N, D), labels (N,) in 0..C, C = background, whose rows count for nothing.

    Attributes:
        mean, var: (C, D) float32, 0 before the first row of a class.
        seen: (C,) bool, whether there was one.
        spread_known: (C,) bool, whether there was a batch with more than one.

    Raises:
        ValueError: arguments out of range.
    """

    mean: Tensor
    var: Tensor
    seen: Tensor
    spread_known: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_size: int,
        *,
        momentum: float = 0.1,
        moment: Moment = "var",
        single_sample: SingleSample = "zero",
        sync: bool = True,
    ) -> None:
        super().__init__()
        if num_classes < 1 or feature_size < 1:
            raise ValueError(f"num_classes and feature_size must be at least 1, got {num_classes} and {feature_size}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum}")
        if moment not in ("var", "std") or single_sample not in ("zero", "skip"):
            raise ValueError(f"moment is 'var' or 'std', single_sample 'zero' or 'skip'; got {moment}, {single_sample}")
        self.num_classes = num_classes
        self.momentum = momentum
        self.moment = moment
        self.single_sample = single_sample
        self.sync = sync
        self.per_rank = frozenset() if sync else frozenset({"mean", "var", "seen", "spread_known"})
        self.register_buffer("mean", torch.zeros(num_classes, feature_size))
        self.register_buffer("var", torch.zeros(num_classes, feature_size))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("spread_known", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Takes one batch in. With ``sync`` every process must call it, with its own rows."""
        features = gather_rows(features.detach().to(self.mean.dtype), sync=self.sync)
        labels = gather_rows(labels, sync=self.sync)
        count, mean, var = batch_moments(features, labels, self.num_classes)
        present = count > 0
        first = present & ~self.seen
        self.mean.copy_(self._moved(self.mean, mean, first, present))

        if self.single_sample == "skip":
            several = count > 1
            first, present = several & ~self.spread_known, several
        old, new = (self.var, var) if self.moment == "var" else (self.var.sqrt(), var.sqrt())
        moved = self._moved(old, new, first, present)
        self.var.copy_(moved if self.moment == "var" else moved.square())
        self.seen.logical_or_(count > 0)
        self.spread_known.logical_or_(count > 1)

    @torch.no_grad()
    def align(self) -> None:
        """Gives every process the first one's moments; rounding may have moved them apart. Only with ``sync``."""
        for value in (self.mean, self.var, self.seen, self.spread_known):
            value.copy_(from_first(value, sync=self.sync))

    def _moved(self, old: Tensor, new: Tensor, first: Tensor, present: Tensor) -> Tensor:
        """``new`` where a class is there for the first time, the average where it is there again, else ``old``."""
        step = torch.where(first, 1.0, torch.where(present, self.momentum, 0.0)).to(old.dtype)
        return torch.lerp(old, new, step.unsqueeze(1).expand_as(old))


def batch_moments(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (C,), mean (C, D) and unbiased variance (C, D) of every class in a batch; 0 where there are none, and the
    variance of a single row is 0.

    Args:
        features: (N, D).
        labels: (N,) in 0..C; C = background is left out.
        num_classes: C.
    """
    count = features.new_zeros(num_classes + 1).index_add_(0, labels, features.new_ones(labels.shape[0]))
    size = (num_classes + 1, features.shape[1])
    mean = features.new_zeros(size).index_add_(0, labels, features) / count.clamp(min=1).unsqueeze(1)
    centred = (features - mean[labels]).square()
    var = features.new_zeros(size).index_add_(0, labels, centred) / (count - 1).clamp(min=1).unsqueeze(1)
    return count[:-1], mean[:-1], var[:-1]
