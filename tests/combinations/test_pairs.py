"""Every pair of parts trains two steps, or is refused by a message that names what works."""

from __future__ import annotations

import inspect
import itertools
from typing import Any, get_args

import numpy as np
import pytest
import torch
from combination_parts import (
    BOX_LOSS_SPECS,
    CLASSIFIERS,
    DETECTORS,
    HEADS,
    IMAGE_SAMPLERS,
    NECKS,
    PROPOSER,
    REGION_SAMPLERS,
    detector_trains,
    part,
    picture,
    region_head,
    sampler_of,
    small_detector,
    text,
    train_two_steps,
    trained,
)
from contract_parts import LOSSES, REPLAYS

import longtail.sampling
from longtail.build.samplers import image_sampler
from longtail.data import AnnotationTable
from longtail.data.scenes import GeneratedSet
from longtail.losses import ClassificationLoss
from longtail.losses.base import Head
from longtail.models.classifiers import Classifier
from longtail.sampling import ImageSampler, RegionSampler, SourceSampler
from longtail.sampling.sources import WeightedSource
from longtail.schema import UsageError
from longtail.schema.explain import models_in
from longtail.schema.samplers import SamplerSpec

BY_NAME = {classifier.name: classifier for classifier in CLASSIFIERS}
every_loss = pytest.mark.parametrize("case", LOSSES)
every_region_loss = pytest.mark.parametrize("case", [case for case in LOSSES if "roi" in part(case.values[0]).heads])
"""The only ones a classifier or replay is for: that of a dense head is its last convolution."""
every_detector = pytest.mark.parametrize("detector", DETECTORS)


def first_classifier(loss: ClassificationLoss) -> type[Classifier]:
    return BY_NAME[min(loss.classifiers)]


@pytest.fixture(scope="module")
def table(smoke_set: GeneratedSet) -> AnnotationTable:
    return AnnotationTable.from_coco(smoke_set.train)


@every_loss
@pytest.mark.parametrize("kind", HEADS)
def test_loss_and_head(case: Any, kind: str) -> None:
    loss = part(case)
    assert kind in get_args(Head)
    if kind in loss.heads:
        model, step = HEADS[kind](loss, first_classifier(loss))
        train_two_steps(model, step, step)
        return
    with pytest.raises(UsageError) as refusal:
        HEADS[kind](loss, first_classifier(loss))
    assert all(head in str(refusal.value) for head in loss.heads)


@every_region_loss
@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=lambda kind: kind.name)
def test_loss_and_classifier(case: Any, classifier: type[Classifier]) -> None:
    loss = part(case)
    assert loss.classifiers <= BY_NAME.keys()
    head = HEADS["roi"]
    if classifier.name in loss.classifiers:
        model, step = head(loss, classifier)
        train_two_steps(model, step, step)
        return
    with pytest.raises(UsageError) as refusal:
        head(loss, classifier)
    assert all(name in str(refusal.value) for name in loss.classifiers)


@every_region_loss
@pytest.mark.parametrize("replay", REPLAYS)
def test_loss_and_replay(case: Any, replay: Any) -> None:
    loss = part(case)
    model, step = region_head(loss, first_classifier(loss), replay=[part(replay)])
    train_two_steps(model, step, step)


def exported(base: type) -> set[type]:
    """Concrete subclasses of ``base`` that the sampling room exports."""
    members = [getattr(longtail.sampling, name) for name in longtail.sampling.__all__]
    return {m for m in members if inspect.isclass(m) and issubclass(m, base) and not inspect.isabstract(m)}


def build_sampler(spec: dict[str, Any] | None, table: AnnotationTable) -> ImageSampler:
    """The image sampler of a schema entry; None = two sources in turn."""
    if spec is None:
        halves = np.array_split(np.arange(table.num_images), 2)
        inner = [image_sampler(models_in(SamplerSpec)[0](), table.select(rows), seed=0) for rows in halves]
        sources = zip("ab", halves, inner, (3.0, 1.0), strict=True)
        return SourceSampler([WeightedSource(*source) for source in sources], seed=0)
    (kind,) = [model for model in models_in(SamplerSpec) if model.model_fields["type"].default == spec["type"]]
    return image_sampler(kind(**spec), table, seed=0)


def test_every_exported_sampler_is_among_the_pairs(table: AnnotationTable) -> None:
    assert {type(build_sampler(spec, table)) for spec in [*IMAGE_SAMPLERS, None]} == exported(ImageSampler)
    assert {type(sampler_of(spec)) for spec in REGION_SAMPLERS} == exported(RegionSampler)


@every_detector
@pytest.mark.parametrize("spec", [*IMAGE_SAMPLERS, None], ids=text)
def test_image_sampler_and_detector(spec: dict[str, Any] | None, detector: str, table: AnnotationTable) -> None:
    model = small_detector(detector, statistics=table.statistics())
    rows = list(itertools.islice(build_sampler(spec, table).epoch(0), 4))
    batches = []
    for number in (0, 2):
        pictures = []
        for row in rows[number : number + 2]:
            own = slice(*table.image_start[row : row + 2])
            boxes = torch.from_numpy(table.boxes_xywh[own]).float()
            boxes[:, 2:] += boxes[:, :2]
            pictures.append(picture(boxes, torch.from_numpy(table.label[own]).long(), seed=int(row)))
        images, targets = zip(*pictures, strict=True)
        batches.append(lambda images=images, targets=targets: model.losses(images, targets))
    train_two_steps(model, *batches)


@every_detector
@pytest.mark.parametrize("spec", REGION_SAMPLERS, ids=text)
def test_region_sampler_and_detector(spec: dict[str, Any], detector: str, table: AnnotationTable) -> None:
    works = detector_trains(detector, [f"stages.*.region_sampler={text(spec)}"], table.statistics())
    assert works or detector != "faster_rcnn"


@every_detector
@pytest.mark.parametrize("proposals", ["only", "cached"])
def test_kept_proposals_and_detector(proposals: str, detector: str, table: AnnotationTable) -> None:
    def build_and_train() -> None:
        model = small_detector(detector, f"stages.*.proposals={proposals}", statistics=table.statistics())
        boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
        image, target = picture(boxes, torch.tensor([0, 1]), seed=3)
        target["proposals"] = torch.cat([boxes + 2, boxes[:, [2, 3, 2, 3]] - torch.tensor([9.0, 9, 0, 0])])
        train_two_steps(model, *[lambda: model.losses([image, image], [target, target])] * 2)

    assert trained(build_and_train) == detector.endswith("rcnn")


@every_detector
@pytest.mark.parametrize("spec", NECKS, ids=text)
def test_neck_and_detector(spec: dict[str, Any], detector: str, table: AnnotationTable) -> None:
    works = detector_trains(detector, [f"model.neck={text(spec)}"], table.statistics())
    assert works or detector != "faster_rcnn"


@every_detector
@pytest.mark.parametrize("spec", BOX_LOSS_SPECS, ids=text)
def test_box_loss_and_detector(spec: dict[str, Any], detector: str, table: AnnotationTable) -> None:
    works = detector_trains(detector, [f"stages.*.box_loss={text(spec)}"], table.statistics())
    assert works or detector != "faster_rcnn"


@pytest.mark.parametrize("spec", REGION_SAMPLERS, ids=text)
def test_region_sampler_and_proposal_network(spec: dict[str, Any], table: AnnotationTable) -> None:
    works = detector_trains(PROPOSER, [f"model.proposals.region_sampler={text(spec)}"], table.statistics())
    assert works or spec["type"] == "hard_examples"


@pytest.mark.parametrize("spec", BOX_LOSS_SPECS, ids=text)
def test_box_loss_and_proposal_network(spec: dict[str, Any], table: AnnotationTable) -> None:
    assert detector_trains(PROPOSER, [f"model.proposals.box_loss={text(spec)}"], table.statistics())


@pytest.mark.parametrize("spec", NECKS, ids=text)
def test_neck_and_proposal_network(spec: dict[str, Any], table: AnnotationTable) -> None:
    assert detector_trains(PROPOSER, [f"model.neck={text(spec)}"], table.statistics())
