"""Every combination, not only pairs; minutes to an hour. ``python -m pytest -n 2 tests/combinations --full-matrix``."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from combination_parts import (
    BOX_LOSS_SPECS,
    CLASSIFIER_SPECS,
    CLASSIFIERS,
    DETECTORS,
    LOSS_SPECS,
    NECKS,
    REGION_SAMPLERS,
    REPLAY_SPECS,
    detector_trains,
    part,
    region_head,
    sampler_of,
    text,
    train_two_steps,
    trained,
)
from contract_parts import BOX_LOSSES, LOSSES, REPLAYS

from longtail.data import AnnotationTable
from longtail.data.scenes import GeneratedSet

PLAIN_NECKS = [
    spec
    for spec in NECKS
    if spec.keys() <= {"type", "channels", "balance"} and spec.get("balance", {}).keys() <= {"type"}
]


def plain(cases: list[Any]) -> list[Any]:
    """The parts with their default options."""
    return [case.values[0] for case in cases if not case.values[0][1]]


@pytest.mark.parametrize("case", LOSSES)
def test_region_heads(case: Any, tally: dict[str, int]) -> None:
    """Loss x classifier x region sampler x box loss x replay, on the region head alone with random features."""
    replays = [[], *([replay] for replay in plain(REPLAYS))]
    failed = []
    for parts in itertools.product(CLASSIFIERS, REGION_SAMPLERS, plain(BOX_LOSSES), replays):
        classifier, regions, box_loss, replay = parts

        def build_and_train(
            classifier: Any = classifier, regions: Any = regions, box_loss: Any = box_loss, replay: Any = replay
        ) -> None:
            model, step = region_head(
                part(case),
                classifier,
                box_loss=part(box_loss),
                sampler=sampler_of(regions),
                replay=[part(each) for each in replay],
            )
            train_two_steps(model, step, step)

        try:
            tally["trained" if trained(build_and_train) else "refused"] += 1
        except Exception as error:
            failed.append((parts, repr(error)))
    assert not failed, f"{len(failed)} combinations, among them {failed[:3]}"


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("neck", PLAIN_NECKS, ids=text)
def test_detectors(neck: dict[str, Any], detector: str, tally: dict[str, int], smoke_set: GeneratedSet) -> None:
    """Neck x detector x loss x classifier; region samplers, box losses and replay parts take turns."""
    statistics = AnnotationTable.from_coco(smoke_set.train).statistics()
    turns = (itertools.cycle(REGION_SAMPLERS), itertools.cycle(BOX_LOSS_SPECS), itertools.cycle(REPLAY_SPECS))
    failed = []
    pairs = itertools.product(LOSS_SPECS, CLASSIFIER_SPECS)
    for (loss, classifier), regions, box_loss, replay in zip(pairs, *turns, strict=False):
        overrides = [
            f"model.neck={text(neck)}",
            f"model.classifier={text(classifier)}",
            f"stages.*.classification_loss={text(loss)}",
            f"stages.*.region_sampler={text(regions)}",
            f"stages.*.box_loss={text(box_loss)}",
            f"stages.*.replay={text(replay)}",
        ]
        try:
            tally["trained" if detector_trains(detector, overrides, statistics) else "refused"] += 1
        except Exception as error:
            failed.append((overrides, repr(error)))
    assert not failed, f"{len(failed)} combinations, among them {failed[:3]}"
