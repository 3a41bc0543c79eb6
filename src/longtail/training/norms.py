"""Batch-norm statistics over several processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def average_norm_statistics(model: nn.Module) -> None:
    """Makes running means and variances equal on all ranks by averaging them, in one message.

    Buffers are not broadcast between ranks (banks differ), so this runs after every step. Does nothing in a single
    process or when every batch norm is frozen. Each rank still normalises with its own pictures, so with batch norm a
    run in several processes does not equal one in a single process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    values = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not values:
        return
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for value, part in zip(values, torch.split(flat, [value.numel() for value in values]), strict=True):
        value.copy_(part.view_as(value))
