"""Stages, the loop, schedules, checkpoints."""

from longtail.training.stage import Stage

__all__ = ["Stage"]
