"""Optimisers with parameter groups."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from longtail.schema.errors import UsageError
from longtail.schema.stage import SGD, AdamW, OptimiserPart, ParameterGroup
from longtail.training.trainable import spellings

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)


def norm_parameters(model: nn.Module) -> set[str]:
    """Names of the affine parameters of normalisation layers."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }


def group_matches(group: ParameterGroup, name: str) -> bool:
    """Whether a group is about the parameter; the stages of a cascade may be left out of its pattern."""
    return any(fnmatchcase(spelling, group.match) for spelling in spellings(name))


def parameter_groups(model: nn.Module, spec: OptimiserPart) -> list[dict[str, Any]]:
    """Parameters that train, grouped by learning rate and weight decay, in a fixed order.

    Every group carries ``base_lr``, from which the schedule computes ``lr``.

    Raises:
        UsageError: a group pattern that matches no parameter at all, of a group that is not ``optional``.
    """
    names = [name for name, _ in model.named_parameters()]
    for group in spec.groups:
        if not group.optional and not any(group_matches(group, name) for name in names):
            raise UsageError(f"the optimiser group {group.match!r} matches no parameter of the model")
    norms = norm_parameters(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = spec.weight_decay
        if name in norms and spec.norm_weight_decay is not None:
            decay = spec.norm_weight_decay
        factor = 1.0
        own = next((group for group in spec.groups if group_matches(group, name)), None)
        if own is not None:
            factor = own.lr_factor
            decay = own.weight_decay if own.weight_decay is not None else decay
        groups.setdefault((spec.lr * factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def build_optimiser(model: nn.Module, spec: SGD | AdamW) -> torch.optim.Optimizer:
    """The optimiser a stage asks for, over the parameters that train."""
    groups = parameter_groups(model, spec)
    if isinstance(spec, SGD):
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas)
