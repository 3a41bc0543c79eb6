"""The learning rate as a function of images seen."""

from __future__ import annotations

import math

from longtail.schema.stage import Schedule


def total_images(schedule: Schedule, dataset_images: int) -> int:
    """Length of the stage in images, from ``images`` or ``epochs`` passes over ``dataset_images``."""
    if schedule.images is not None:
        return schedule.images
    assert schedule.epochs is not None
    return max(1, round(schedule.epochs * dataset_images))


def total_steps(schedule: Schedule, dataset_images: int) -> int:
    """Optimiser steps of the stage; the last one completes the length."""
    return math.ceil(total_images(schedule, dataset_images) / schedule.batch_size)


def learning_rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Factor on the learning rate at optimiser step ``step`` (0-based) of ``steps``, in (0, 1].

    Warm-up rises linearly from ``warmup_factor`` to 1 over ``warmup_images`` and multiplies the decay, which runs over
    the whole stage: steps of ``gamma`` at the milestones, or a cosine from 1 to ``final_factor``.
    """
    share = step / steps
    if schedule.decay == "cosine":
        factor = schedule.final_factor + (1 - schedule.final_factor) * 0.5 * (1 + math.cos(math.pi * share))
    elif schedule.decay == "steps":
        factor = schedule.gamma ** sum(share >= milestone for milestone in schedule.milestones)
    else:
        factor = 1.0
    warmup_steps = schedule.warmup_images / schedule.batch_size
    if step < warmup_steps:
        rise = step / warmup_steps
        factor *= schedule.warmup_factor + (1 - schedule.warmup_factor) * rise
    return factor
