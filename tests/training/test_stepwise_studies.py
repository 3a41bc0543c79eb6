"""Step-wise learning's studies: rows differ, share step 0, and the parts of table 5 follow the specification."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from longtail.schema import Recipe
from longtail.schema.samplers import GroupRepeatFactor
from longtail.schema.study import load_study
from longtail.training.study_plan import row_recipe, run_key

FOLDER = Path(str(resources.files("longtail").joinpath("studies")))
NAMES = sorted(path.stem for path in FOLDER.glob("stepwise-*.yaml"))


def recipes(name: str) -> dict[str, Recipe]:
    study = load_study(FOLDER / f"{name}.yaml")
    return {row.label: row_recipe(study, row, FOLDER, 0, []) for row in study.rows if row.recipe is not None}


def test_there_is_one_for_every_table() -> None:
    assert {f"stepwise-table-{number}" for number in range(1, 9)} | {"stepwise-tiny"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_rows_differ_and_share_step_0(name: str) -> None:
    found = recipes(name)
    keys = [run_key(recipe, len(recipe.stages), "data") for recipe in found.values()]
    assert len(set(keys)) == len(keys)
    backbones = {recipe.model.backbone.name for recipe in found.values()}  # type: ignore[union-attr]
    assert len({run_key(recipe, 1, "data") for recipe in found.values()}) == len(backbones)


def test_the_parts_of_table_5() -> None:
    found = recipes("stepwise-table-5")
    four = found["[1,10) | [10,30) | [30,100) | [100,-)"]
    assert [stage.name for stage in four.stages[1:]] == [
        "head-expert", "knowledge-transfer", "knowledge-transfer-2", "knowledge-transfer-3",
    ]  # fmt: skip
    counts = [(30, 30, 30, 200), (30, 30, 200, 50), (30, 200, 50, 50), ("all", 50, 50, 50)]
    learnt_before = [None, 100, 30, 10]
    for place, (stage, wanted, least) in enumerate(zip(four.stages[1:], counts, learnt_before, strict=True)):
        assert stage.exemplars is not None
        assert stage.exemplars.edges == (10, 30, 100)
        assert stage.exemplars.counts == wanted
        assert isinstance(stage.sampler, GroupRepeatFactor)
        assert [limit > 0 for limit in stage.sampler.thresholds] == [part == 3 - place for part in range(4)]
        assert {loss.head_min_images for loss in stage.auxiliary_losses} == ({least} if least else set())
        assert stage.optimiser.lr == (2e-4 if place else 2e-5)
        assert stage.schedule.epochs == (2 if place else 1)
        assert (stage.teacher is not None) == bool(place)
