"""FASA's studies: rows that are run resolve, differ from each other, and train without the same images."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from longtail.schema import Recipe
from longtail.schema.parts import VirtualFeatures
from longtail.schema.study import load_study
from longtail.training.study_plan import row_recipe, run_key

FOLDER = Path(str(resources.files("longtail").joinpath("studies")))
NAMES = sorted(path.stem for path in FOLDER.glob("fasa-*.yaml"))


def recipes(name: str) -> dict[str, Recipe]:
    study = load_study(FOLDER / f"{name}.yaml")
    return {row.label: row_recipe(study, row, FOLDER, 0, []) for row in study.rows if row.recipe is not None}


def virtual(recipe: Recipe) -> VirtualFeatures:
    (part,) = recipe.stages[-1].replay
    assert isinstance(part, VirtualFeatures)
    return part


def test_there_is_one_for_every_table() -> None:
    assert [*(f"fasa-table-{table}" for table in range(1, 8)), "fasa-tiny"] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_different_runs_on_the_same_images(name: str) -> None:
    found = recipes(name)
    assert len({run_key(recipe, len(recipe.stages), "data") for recipe in found.values()}) == len(found)
    assert {recipe.holdout for label, recipe in found.items() if "released" not in label} == {
        found.popitem()[1].holdout
    }


def test_static_rows_do_not_adapt() -> None:
    for name, scales in (("fasa-table-3", (1, 5, 15)), ("fasa-tiny", (1, 2, 5))):
        rows = recipes(name)
        for scale in scales:
            part = virtual(rows[f"static, s = {scale}"])
            assert part.scale == scale
            assert not part.adapts
    assert virtual(recipes("fasa-table-3")["adaptive"]).adapts
    assert virtual(recipes("fasa-table-1")["FA"]) == virtual(recipes("fasa-table-3")["static, s = 5"])


def test_the_schedules_of_table_4() -> None:
    rows = recipes("fasa-table-4")
    assert [stage.schedule.epochs for stage in rows["BAGS + FASA"].stages] == [12, 12]
    assert not rows["cRT + FASA"].stages[0].replay
    assert rows["Softmax, RFS + FASA"].stages[0].schedule.epochs == 24
    official = virtual(rows["Softmax, uniform + FASA (released code)"])
    assert (official.grouping, official.norm, official.sync) == ("affinity_official", "total", False)


def test_rounds_of_the_tiny_study() -> None:
    stage = recipes("fasa-tiny")["fasa"].stages[0]
    assert stage.schedule.images is not None
    assert stage.passes_every.images is not None
    warmup = virtual(recipes("fasa-tiny")["fasa"]).warmup_images
    assert warmup == 480
    assert (stage.schedule.images - warmup) // stage.passes_every.images >= 6
