"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from longtail.schema.errors import DataError


class WeightAverage:
    """A moving average of the parameters that train; buffers are not averaged.

    After step t it moves by ``1 - min(decay, (1 + t) / (10 + t))`` of the way to the weights, so that the starting
    point is soon forgotten.

    Args:
        model: the average starts from its weights.
        decay: in (0, 1).

    Attributes:
        values: averages by parameter name, float32.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"a decay lies between 0 and 1, got {decay}")
        self.decay = decay
        self.values: dict[str, Tensor] = {
            name: parameter.detach().clone().float()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def to(self, device: torch.device) -> None:
        """Moves the averages."""
        self.values = {name: value.to(device) for name, value in self.values.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes the weights after ``step`` steps in."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own = dict(model.named_parameters())
        torch._foreach_lerp_(
            list(self.values.values()), [own[name].detach().float() for name in self.values], 1 - decay
        )

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Replaces the model's weights by their averages."""
        own = dict(model.named_parameters())
        for name, value in self.values.items():
            own[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        own = dict(model.named_parameters())
        kept = {name: own[name].detach().clone() for name in self.values}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    own[name].copy_(value)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Goes on from saved averages.

        Raises:
            DataError: they belong to another model.
        """
        if values.keys() != self.values.keys() or any(values[n].shape != v.shape for n, v in self.values.items()):
            raise DataError("the saved average of the weights belongs to another model")
        for name, value in self.values.items():
            value.copy_(values[name])
