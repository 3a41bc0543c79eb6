"""Every replay part with every classifier, every detector and every other replay part: two steps, or a refusal."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from combination_parts import (
    CLASSIFIERS,
    DETECTORS,
    REPLAY_SPECS,
    detector_trains,
    part,
    picture,
    region_head,
    small_detector,
    text,
    train_two_steps,
    trained,
)
from contract_parts import LOSSES, REPLAYS

from longtail.data import AnnotationTable, ClassStatistics
from longtail.data.scenes import GeneratedSet
from longtail.models.classifiers import Classifier
from longtail.models.region_head import BoxStage

# object_memory, feature_memory, ... with their defaults
KINDS = list({spec["type"]: spec for (spec,) in reversed(REPLAY_SPECS[1:])}.values())
WITH_REGIONS = {"faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"}


@pytest.fixture(scope="module")
def statistics(smoke_set: GeneratedSet) -> ClassStatistics:
    return AnnotationTable.from_coco(smoke_set.train).statistics()


@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("replay", REPLAYS)
def test_replay_and_classifier(replay: Any, classifier: type[Classifier]) -> None:
    own = part(replay)
    loss = next(
        loss
        for loss in (part(case.values[0]) for case in LOSSES)
        if "roi" in loss.heads and classifier.name in loss.classifiers
    )

    def build_and_train() -> None:
        model, step = region_head(loss, classifier, replay=[own])
        train_two_steps(model, step, step)

    assert trained(build_and_train) == (classifier.level == "embedded" or own.level == "pooled")


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec["type"])
def test_replay_and_detector(spec: dict[str, Any], detector: str, statistics: ClassStatistics) -> None:
    works = detector_trains(detector, [f"stages.*.replay={text([spec])}"], statistics)
    assert works == (detector in WITH_REGIONS)


@pytest.mark.parametrize(
    "both", itertools.combinations_with_replacement(KINDS, 2), ids=lambda both: "-".join(spec["type"] for spec in both)
)
def test_replay_and_replay(both: tuple[dict[str, Any], ...], statistics: ClassStatistics) -> None:
    works = detector_trains("faster_rcnn", [f"stages.*.replay={text(list(both))}"], statistics)
    assert works == ([spec["type"] for spec in both] != ["mean_score", "mean_score"])


SYSTEMS = {
    "rio": ["model.classifier=cosine", "stages.*.replay=[object_memory]"],
    "loce": ["stages.*.classification_loss=equilibrium", "stages.*.replay=[{type: feature_memory, classes: 40}]"],
    "fasa": ["stages.*.replay=[{type: virtual_features, scale: 1000, warmup_images: 0, grouping: none}]"],
}


@pytest.mark.parametrize("detector", sorted(WITH_REGIONS))
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_in_bf16(
    system: str, detector: str, statistics: ClassStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of half precision come back from banks and moments in single precision, and everything stays finite."""
    model = small_detector(detector, *SYSTEMS[system], statistics=statistics)
    added = []
    original = BoxStage._replay

    def noting(self: BoxStage, *arguments: Any) -> Any:
        found = original(self, *arguments)
        added.extend(rows.labels.shape[0] for rows in found.values())
        return found

    monkeypatch.setattr(BoxStage, "_replay", noting)
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    image, target = picture(boxes, torch.tensor([0, statistics.num_classes - 1]), seed=3)

    def step() -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.losses([image, image], [target, target])  # type: ignore[no-any-return]

    train_two_steps(model, step, step)
    assert sum(added) > 0
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())
