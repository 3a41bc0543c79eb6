"""Small tensors every classification loss needs. A cell is one logit of one row: (N, K) logits have N * K cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """``x`` itself in float32 or float64, otherwise (bfloat16, float16) converted to float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def target_cells(labels: Tensor, columns: int) -> Tensor:
    """(N, columns) bool, True at the label of every row. A label >= ``columns`` has no True cell in its row."""
    return labels.unsqueeze(1) == torch.arange(columns, device=labels.device)


def left_out_cells(labels: Tensor, class_mask: Tensor, columns: int) -> Tensor:
    """(N, columns) bool, True at the cells that ``class_mask`` (N, C) takes out of the loss.

    The label of a row is never taken out, nor is any column beyond C (background, objectness).
    """
    outside = F.pad(~class_mask, (0, columns - class_mask.shape[1]), value=False)
    return outside & ~target_cells(labels, columns)


def counted_rows(labels: Tensor, weight: Tensor | None) -> Tensor:
    """(N,) bool, True at the rows with positive weight; None = all."""
    return torch.ones_like(labels, dtype=torch.bool) if weight is None else weight > 0


def label_counts(labels: Tensor, counted: Tensor, columns: int) -> Tensor:
    """(columns,) int64: how many of the ``counted`` (N,) rows have each label; labels >= ``columns`` are left out."""
    return (target_cells(labels, columns) & counted.unsqueeze(1)).sum(dim=0)
