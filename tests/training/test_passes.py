"""Passes without an optimiser step: which pictures they look at."""

from __future__ import annotations

from typing import Any

import pytest

from longtail.data import AnnotationTable
from longtail.data.dataset import DetectionDataset
from longtail.data.scenes import GeneratedSet
from longtail.schema.passes import UpdateState
from longtail.schema.stage import Schedule
from longtail.training.passes import class_images
from longtail.training.stage import Stage


@pytest.fixture
def stage(smoke_set: GeneratedSet) -> Stage:
    nothing: Any = None
    return Stage(
        name="one",
        model=nothing,
        optimiser=nothing,
        schedule=Schedule(images=8),
        steps=1,
        dataset=DetectionDataset(AnnotationTable.from_coco(smoke_set.train), smoke_set.images),
        sampler=nothing,
        epoch_images=8,
    )


def test_pictures_of_every_class_are_the_first_ones_or_follow_the_seed(stage: Stage) -> None:
    def rows(choice: Any, seed: int, world_size: int = 1) -> list[int]:
        work = UpdateState(per_class=2, choice=choice)
        return class_images(stage, work, seed=seed, world_size=world_size).epoch(0).tolist()

    assert rows("first", 0) == rows("first", 1)
    assert rows("random", 0) == rows("random", 0) != rows("random", 1)
    assert len(rows("random", 0)) == len(rows("first", 0))
    assert len(rows("random", 0, world_size=3)) == 3 * len(rows("random", 0))
