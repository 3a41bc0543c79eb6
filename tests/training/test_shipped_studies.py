"""Every study that comes with the package: rows that are run resolve, and differ where their tables differ."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from longtail.schema import Recipe
from longtail.schema.detector import RCNN
from longtail.schema.study import Study, load_study
from longtail.training.study_plan import row_recipe, run_key

FOLDER = Path(str(resources.files("longtail").joinpath("studies")))


RELEASED = ["rio-table-1", "rio-table-2", "rio-table-4", "rio-table-5", "rio-figure-6", "loce-lvis", "loce-lvis-v0.5"]
"""Of RIO and LOCE at published scale, after their released code."""


def study(name: str) -> Study:
    return load_study(FOLDER / f"{name}.yaml")


def recipes(name: str) -> list[Recipe]:
    rows = study(name).rows
    return [row_recipe(study(name), row, FOLDER, 0, []) for row in rows if row.recipe is not None]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_row_that_is_run_resolves(name: str) -> None:
    for row in study(name).rows:
        assert (row.recipe is None) == bool(row.reason)
        if row.recipe is not None:
            assert row_recipe(study(name), row, FOLDER, 0, []).stages


PAPERS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem.startswith(("rio-", "loce-", "fasa-")))


@pytest.mark.parametrize("name", PAPERS)
def test_every_row_of_two_stages_has_a_control_of_the_same_stages(name: str) -> None:
    rows = [row for row in study(name).rows if row.recipe is not None]
    found = dict(zip((row.label for row in rows), recipes(name), strict=True))
    for row in rows:
        stages = found[row.label].stages
        if len(stages) > 1 and not str(row.recipe).endswith("-control"):
            assert row.control is not None, row.label
            control = found[row.control]
            assert str(control.name).endswith("-control")
            assert [stage.schedule for stage in control.stages] == [stage.schedule for stage in stages]
            assert control.model.model_dump().get("backbone") == found[row.label].model.model_dump().get("backbone")


@pytest.mark.parametrize(
    "name", ["rio-table-1", "rio-table-2", "rio-table-4", "rio-table-5", "rio-figure-6", "rio-tiny"]
)
def test_no_two_rows_of_rio_are_the_same_run(name: str) -> None:
    keys = [run_key(recipe, len(recipe.stages), "data") for recipe in recipes(name)]
    assert len(set(keys)) == len(keys)


def test_the_released_schedules_of_rio() -> None:
    for name, steps in (("rio-table-1", 90_000), ("rio-table-5", 180_000)):
        for recipe in recipes(name):
            schedule = recipe.stages[0].schedule
            assert (schedule.epochs, schedule.images, schedule.batch_size) == (None, 16 * steps, 16)
            assert (schedule.warmup_images, schedule.warmup_factor) == (16_000, 0.001)
            assert schedule.milestones == (2 / 3, 8 / 9)


@pytest.mark.parametrize("name", RELEASED)
def test_rio_and_loce_learn_boxes_by_l1_as_released(name: str) -> None:
    for recipe in recipes(name):
        assert {stage.box_loss.type for stage in recipe.stages} == {"l1"}
        assert isinstance(recipe.model, RCNN)
        assert recipe.model.proposals.box_loss.type == "l1"


@pytest.mark.parametrize("name", RELEASED)
def test_rio_and_loce_leave_out_pictures_without_objects(name: str) -> None:
    assert not any(recipe.images.keep_empty for recipe in recipes(name))


def test_figure_6_varies_one_setting_at_a_time() -> None:
    parts = [
        row_recipe(study("rio-figure-6"), row, FOLDER, 0, []).stages[0].replay[0]
        for row in study("rio-figure-6").rows
        if row.recipe == "rio"
    ]
    base = parts[0].model_dump()
    changed = [{k for k, v in part.model_dump().items() if v != base[k]} for part in parts[1:]]
    assert changed == [{"max_images"}] * 3 + [{"count"}] * 5 + [{"source", "count"}] * 2 + [{"source"}]
