"""Step-wise learning's feature distillation (ICCV 2023, equation 2) carried over to regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longtail.losses.auxiliary import AuxiliaryLoss, Record
from longtail.losses.state import shared_normalisers


class RegionFeatureDistillation(AuxiliaryLoss):
    """Keeps a student's region features close to its teacher's on regions of head classes.

    ``sum over regions of head classes and features of (f_S - f_T) ** 2 / (2 * number of these regions)``, the regions
    of all processes; 0 without any. Student and teacher must see the same regions, as they do where all that comes
    before the features is frozen.

    Args:
        head: (C,) bool, True for the classes whose regions count.
        loss_weight: factor on the result.

    Records ``"region_features"`` (N, D) and ``"region_labels"`` (N,), background C.
    """

    wants = frozenset({"region_features", "region_labels"})

    def __init__(self, head: Tensor, *, loss_weight: float = 1.0) -> None:
        super().__init__()
        if head.dtype != torch.bool or head.ndim != 1:
            raise ValueError(f"head must be a boolean vector, got {head.dtype} of shape {tuple(head.shape)}")
        self.register_buffer("counted", torch.cat((head, head.new_zeros(1))), persistent=False)
        self.counted: Tensor
        self.loss_weight = loss_weight

    def forward(self, student: Record, teacher: Record, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``{"loss_region_features": scalar}``.

        Raises:
            ValueError: student and teacher have other numbers of regions.
        """
        own, other = student["region_features"], teacher["region_features"].detach()
        if own.shape != other.shape:
            raise ValueError(f"student and teacher have features of other shapes: {own.shape} and {other.shape}")
        mask = self.counted[student["region_labels"]].to(own.dtype)
        (normaliser,) = shared_normalisers([mask.sum()], device=own.device)
        total = ((own - other).square().sum(dim=1) * mask).sum()
        return {"loss_region_features": self.loss_weight * total / (2 * normaliser)}
