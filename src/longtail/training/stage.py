"""One stage of training, ready-made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset

from longtail.data.dataset import Target
from longtail.losses.auxiliary import AuxiliaryLoss
from longtail.models.base import TrainableModel
from longtail.sampling import ImageSampler
from longtail.schema.passes import ClassLosses, UpdateState, ValidationLoss
from longtail.schema.stage import Schedule
from longtail.training.class_losses import LossPictures
from longtail.training.weight_average import WeightAverage


@dataclass
class Stage:
    """Everything one stage needs; no part of it is built here.

    Attributes:
        name: unique within the run.
        model: its trainable parameters marked.
        optimiser: over those parameters; every group has ``base_lr``.
        schedule: batch size, length and learning rate.
        steps: optimiser steps in all.
        dataset: training pictures.
        sampler: which of them, in which order.
        epoch_images: images that make an epoch (the unrepeated training set).
        validation: pictures for the pass ``validation_loss``, or None.
        passes_before, passes_after_epoch: passes without an optimiser step.
        round_images: images between two rounds of the latter; 0 = an epoch.
        loss_pictures: what every pass ``class_losses`` looks at.
        teacher: a frozen detector for ``auxiliary``, or None.
        teacher_dropout: whether its dropout is on, instead of evaluation mode.
        auxiliary: losses between student and teacher.
        clip_norm: largest norm of the gradient, or None.
        average: moving average of the weights, which is evaluated and becomes the stage's result, or None.
    """

    name: str
    model: TrainableModel
    optimiser: torch.optim.Optimizer
    schedule: Schedule
    steps: int
    dataset: Dataset[tuple[torch.Tensor, Target]]
    sampler: ImageSampler
    epoch_images: int
    validation: Dataset[tuple[torch.Tensor, Target]] | None = None
    passes_before: Sequence[UpdateState | ValidationLoss | ClassLosses] = ()
    passes_after_epoch: Sequence[UpdateState | ValidationLoss | ClassLosses] = ()
    round_images: float = 0.0
    loss_pictures: Mapping[ClassLosses, LossPictures] = field(default_factory=dict)
    teacher: TrainableModel | None = None
    teacher_dropout: bool = False
    auxiliary: Sequence[AuxiliaryLoss] = field(default_factory=tuple)
    clip_norm: float | None = None
    average: WeightAverage | None = None

    @property
    def images(self) -> int:
        """Images seen by the end."""
        return self.steps * self.schedule.batch_size

    def epochs_after(self, step: int) -> float:
        """Passes over the unrepeated training images after ``step`` optimiser steps."""
        return step * self.schedule.batch_size / self.epoch_images

    def epoch_after(self, step: int) -> int:
        """Epochs completed after ``step`` optimiser steps."""
        return step * self.schedule.batch_size // self.epoch_images

    def rounds_after(self, step: int) -> int:
        """Rounds of ``passes_after_epoch`` due up to ``step`` optimiser steps; 0 if there are no such passes."""
        every = self.round_images or self.epoch_images
        return int(step * self.schedule.batch_size / every) if self.passes_after_epoch else 0
