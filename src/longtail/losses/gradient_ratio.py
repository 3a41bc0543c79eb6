"""State of losses that weigh classes by the gradients they have received: EQLv2 and EFL."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longtail.losses.state import sum_over_ranks


class GradientRatio(nn.Module):
    """Sums, per class, of the absolute gradients with respect to its logit, of rows of the class and of all others.

    Args:
        num_classes: C.
        start: ratio of a class that has received no gradient yet.
        sync: whether the gradients of all processes are summed; if not, the state is each process's own.

    State:
        ``positive`` and ``negative`` (C,), float64, from 0.
    """

    def __init__(self, num_classes: int, *, start: float, sync: bool) -> None:
        super().__init__()
        self.start = start
        self.sync = sync
        self.per_rank = frozenset() if sync else frozenset({"positive", "negative"})
        self.positive: Tensor
        self.negative: Tensor
        self.register_buffer("positive", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("negative", torch.zeros(num_classes, dtype=torch.float64))

    def forward(self) -> Tensor:
        """(C,) float64: ``positive / (negative + 1e-10)``, or ``start`` where both are still 0."""
        ratio = self.positive / (self.negative + 1e-10)
        return torch.where(self.positive + self.negative > 0, ratio, self.start)

    @torch.no_grad()
    def add(self, gradient: Tensor, target: Tensor) -> None:
        """Count one step. Every process calls it, also with no rows.

        Args:
            gradient: (N, C) absolute gradients, 0 at cells that take no part.
            target: (N, C), 1 at the label of every row, else 0; of the same type.
        """
        positive = gradient * target
        sums = torch.stack([positive.sum(dim=0), (gradient - positive).sum(dim=0)])
        sums = sum_over_ranks(sums.double(), sync=self.sync)
        self.positive += sums[0]
        self.negative += sums[1]
