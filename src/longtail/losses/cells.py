"""Small tensors every classification loss needs. A cell is one logit of one row: (N, K) logits have N * K cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """``x`` itself in float32 or float64, otherwise (bfloat16, float16) converted to float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def target_cells(labels: Tensor, columns: int, dtype: torch.dtype = torch.bool) -> Tensor:
    """(N, columns), True or 1 at the label of every row. A label >= ``columns`` has no such cell in its row."""
    inside = (labels < columns).to(dtype).unsqueeze(1)
    cells = torch.zeros(labels.shape[0], columns, dtype=dtype, device=labels.device)
    return cells.scatter_(1, labels.clamp(max=columns - 1).unsqueeze(1), inside)


def left_out_cells(labels: Tensor, class_mask: Tensor, columns: int) -> Tensor:
    """(N, columns) bool, True at the cells that ``class_mask`` (N, C) takes out of the loss.

    The label of a row is never taken out, nor is any column beyond C (background, objectness).
    """
    outside = F.pad(~class_mask, (0, columns - class_mask.shape[1]), value=False)
    return outside.logical_and_(target_cells(labels, columns).logical_not_())


def counted_rows(labels: Tensor, weight: Tensor | None) -> Tensor:
    """(N,) bool, True at the rows with positive weight; None = all."""
    return torch.ones_like(labels, dtype=torch.bool) if weight is None else weight > 0


def label_counts(labels: Tensor, counted: Tensor, columns: int) -> Tensor:
    """(columns,) int64: how many of the ``counted`` (N,) rows have each label; labels >= ``columns`` are left out."""
    counts = torch.zeros(columns + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(0, labels.clamp(max=columns), counted.long())[:columns]
