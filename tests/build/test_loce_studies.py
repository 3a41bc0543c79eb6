"""LOCE's study files: every row that is not quoted is a model that can be built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import longtail
from longtail.build.model import build_model
from longtail.data import ClassStatistics
from longtail.schema.study import load_study
from longtail.training.study_plan import row_recipe

STATISTICS = ClassStatistics(
    names=["cat", "dog", "emu"],
    image_counts=np.array([200, 30, 5]),
    instance_counts=np.array([300, 40, 5]),
    num_images=220,
    num_nonempty=220,
)
STUDIES = Path(longtail.__file__).parent / "studies"
ROWS = [
    pytest.param(name, row.label, id=f"{name}-{row.label}")
    for name in ("loce-lvis", "loce-lvis-v0.5", "loce-tiny")
    for row in load_study(STUDIES / f"{name}.yaml").rows
]


@pytest.mark.parametrize(("name", "label"), ROWS)
def test_every_row_resolves_or_is_quoted_with_a_reason(name: str, label: str) -> None:
    study = load_study(STUDIES / f"{name}.yaml")
    row = next(row for row in study.rows if row.label == label)
    if row.recipe is None:
        assert row.quoted
        assert row.reason
        return
    assert row_recipe(study, row, STUDIES, 0, []).name == row.recipe
    if row.recipe.startswith("loce"):  # small, since options of LOCE are what is looked at
        small = row_recipe(study, row, STUDIES, 0, ["scale=tiny", "model.backbone=tiny32", "model.regions.channels=16"])
        assert len(build_model(small, small.stages[1], STATISTICS, pretrained=False).box.replay) >= 1


@pytest.mark.parametrize("name", ["loce-lvis", "loce-lvis-v0.5"])
def test_regions_are_pooled_from_as_many_points_as_released(name: str) -> None:
    study = load_study(STUDIES / f"{name}.yaml")
    recipes = [row_recipe(study, row, STUDIES, 0, []) for row in study.rows if row.recipe is not None]
    assert {recipe.model.regions.sampling_ratio for recipe in recipes} == {0}


def test_the_options_of_a_row_arrive() -> None:
    study = load_study(STUDIES / "loce-lvis.yaml")
    by_label = {row.label: row_recipe(study, row, STUDIES, 0, []) for row in study.rows}
    stage = by_label["k 4, m 8"].stages[1]
    assert (stage.replay[0].classes, stage.replay[0].count) == (4, 8)
    assert by_label["alpha 0.95"].stages[1].replay[1].alpha == 0.95
    assert by_label["background 0.1"].stages[1].replay[1].background == 0.1
    assert by_label["one stage of 30 epochs"].stages[0].schedule.epochs == 30
    assert by_label["EBL + MFS by P(y)"].stages[1].replay[0].guide == "instances"
    same_loss = load_study(STUDIES / "loce-tiny.yaml")
    tiny = {row.label: row_recipe(same_loss, row, STUDIES, 0, []) for row in same_loss.rows}
    assert tiny["one stage"].stages[0].schedule.images == sum(stage.schedule.images for stage in tiny["EBL"].stages)
    assert tiny["one stage"].stages[0].classification_loss == tiny["neither"].stages[0].classification_loss
    for same in ("alpha 0.9", "background 0.01", "k 8, m 4"):
        assert by_label[same].stages == by_label["EBL + MFS"].stages
