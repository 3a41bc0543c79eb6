"""Means of losses over steps and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from longtail.losses.state import sum_over_ranks


def mean_losses(sums: Mapping[str, Tensor], steps: int) -> dict[str, float]:
    """Losses by name, averaged over ``steps`` steps and over all processes; this waits for the device.

    Every process must call it. They need not have the same names: a loss that a process has not met in these steps
    counts as 0 there. A value that is not finite in one process is not finite in the mean, so that all of them see it.

    Args:
        sums: this process's losses, summed over the steps; scalars.
        steps: optimiser steps, >= 1.
    """
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if ranks == 1:
        return {name: float(value) / steps for name, value in sums.items()}
    met: list[list[str]] = [[]] * ranks
    dist.all_gather_object(met, list(sums))
    names = list(dict.fromkeys(name for own in met for name in own))
    if not names:
        return {}
    zero = torch.zeros((), dtype=torch.float64)
    own = torch.stack([sums[name].double().cpu() if name in sums else zero for name in names])
    return dict(zip(names, (sum_over_ranks(own) / (ranks * steps)).tolist(), strict=True))
