"""From the recipe to the calibrated head, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from longtail.build.model import build_model, start_calibration
from longtail.data import AnnotationTable, ClassStatistics
from longtail.data.dataset import DetectionDataset, Draw
from longtail.data.loader import PositionBatches
from longtail.data.scenes import GeneratedSet
from longtail.models import RCNN
from longtail.sampling import BiLevelSampler
from longtail.schema import Recipe, UsageError, load_recipe

SMALL = ["scale=tiny", "model.backbone=tiny32", "model.neck.channels=16", "model.regions.channels=32"]


def recipe(*changes: str, name: str = "simcal") -> Recipe:
    return load_recipe(name, [*SMALL, *changes])


@pytest.fixture
def statistics(smoke_set: GeneratedSet) -> ClassStatistics:
    return AnnotationTable.from_coco(smoke_set.train).statistics()


def build(found: Recipe, statistics: ClassStatistics) -> RCNN:
    model = build_model(found, found.stages[1], statistics, pretrained=False)
    assert isinstance(model, RCNN)
    return model


def test_the_tail_has_fewer_objects_than_the_recipe_says(statistics: ClassStatistics) -> None:
    edge = int(np.sort(statistics.instance_counts)[3])
    model = build(recipe(f"stages.calibration.calibration.tail_below={edge}"), statistics)
    assert model.box.calibrated is not None
    assert model.box.calibrated.tail.tolist() == (statistics.instance_counts < edge).tolist()
    assert model.box.calibrated.tail.any()


def test_the_first_stage_has_one_head(statistics: ClassStatistics) -> None:
    found = recipe()
    model = build_model(found, found.stages[0], statistics, pretrained=False)
    assert isinstance(model, RCNN)
    assert model.box.calibrated is None


@pytest.mark.parametrize("start", ["copy", "new"])
def test_it_starts_from_the_weights_the_original_has_now(start: str, statistics: ClassStatistics) -> None:
    found = recipe(f"stages.calibration.calibration.start={start}")
    model = build(found, statistics)
    assert model.box.calibrated is not None
    with torch.no_grad():
        for parameter in (*model.box.head.parameters(), *model.box.classifier.parameters()):
            parameter.fill_(0.125)
    text = start_calibration(model, found.stages[1])
    assert text is not None
    assert f"of {len(statistics.names)} classes" in text
    copied = all(torch.equal(own, torch.full_like(own, 0.125)) for own in model.box.calibrated.parameters())
    assert copied == (start == "copy")


def test_a_loss_with_a_prior_keeps_it_in_a_new_head(statistics: ClassStatistics) -> None:
    found = recipe("stages.*.classification_loss=eql", "stages.calibration.calibration.start=new")
    model = build(found, statistics)
    assert model.box.calibrated is not None
    torch.testing.assert_close(model.box.calibrated.classifier.bias, model.box.classifier.bias)


def test_cascades_are_refused(statistics: ClassStatistics) -> None:
    with pytest.raises(UsageError, match=r"calibrated head.*not in cascade"):
        build(recipe("model=cascade_rcnn"), statistics)


@pytest.mark.parametrize(
    ("change", "message"),
    [("stages.calibration.replay=[object_memory]", "calibrated head"), ("stages.*.source_weights=[1, 2]", "bi_level")],
)
def test_parts_that_do_not_go_together_are_refused(change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(change)


def test_the_drawn_class_reaches_the_target(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    sampler = BiLevelSampler(table.image_start, table.label, table.num_classes, seed=1)
    batch = next(iter(PositionBatches(sampler, seed=0, batch_size=6)))
    assert [draw.label for draw in batch] == sampler.labels(0)[:6].tolist()
    dataset = DetectionDataset(table, Path(smoke_set.images))
    _, target = dataset[batch[0]]
    assert target["sampled_class"] in target["labels"]
    assert "sampled_class" not in dataset[Draw(0, 1)][1]


def test_second_epochs_bring_their_own_classes(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    sampler = BiLevelSampler(table.image_start, table.label, table.num_classes, seed=1, length=5)
    batches = iter(PositionBatches(sampler, seed=0, batch_size=5, start_batch=1))
    assert [draw.label for draw in next(batches)] == sampler.labels(1).tolist()
    assert [draw.label for draw in next(batches)] == sampler.labels(2).tolist()
