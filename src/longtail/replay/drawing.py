"""Draws that wait for no device: of classes among those that qualify, and of numbers below a bound."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_among(able: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``count`` numbers drawn evenly, with replacement, among those whose ``able`` (C,) is true.

    Returns:
        Numbers (count,) in 0..C-1, and () bool, whether there was any to choose among; otherwise they mean nothing.
    """
    order = able.logical_not().argsort(stable=True)  # those that qualify first
    number = able.sum()
    return order[below(number.expand(count))], number > 0


def below(bounds: Tensor) -> Tensor:
    """(M,) whole numbers drawn evenly from 0 .. bound - 1; 0 where the bound (M,) is below 1."""
    uniform = torch.rand(bounds.shape, device=bounds.device, dtype=torch.float64)
    return torch.minimum((uniform * bounds).long(), bounds - 1).clamp(min=0)
