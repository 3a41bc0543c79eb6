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
