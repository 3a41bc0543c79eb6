"""Libra R-CNN's studies at published scale: rows differ where their table says, and share what it says they share."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from longtail.schema import Recipe
from longtail.schema.study import load_study
from longtail.training.study_plan import plan_runs, row_recipe, run_key

FOLDER = Path(str(resources.files("longtail").joinpath("studies")))


def recipes(name: str) -> dict[str, Recipe]:
    study = load_study(FOLDER / f"{name}.yaml")
    return {row.label: row_recipe(study, row, FOLDER, 0, []) for row in study.rows if row.recipe is not None}


def changed_keys(one: Recipe, other: Recipe) -> set[str]:
    """Keys of the model and of the last stage at which two recipes differ; `earlier` for anything before."""
    first, second = one.model_dump(), other.model_dump()
    found = {f"model.{key}" for key in first["model"] if first["model"][key] != second["model"][key]}
    stages, others = first["stages"], second["stages"]
    found |= {f"stages.{key}" for key in stages[-1] if stages[-1][key] != others[-1][key]}
    return found | ({"earlier"} if stages[:-1] != others[:-1] else set())


def test_there_is_one_for_every_table() -> None:
    assert {path.stem for path in FOLDER.glob("libra-table-*.yaml")} == {f"libra-table-{n}" for n in range(1, 12)}


@pytest.mark.parametrize(
    ("table", "runs"), [(1, 3), (2, 6), (3, 5), (4, 5), (5, 5), (6, 11), (7, 4), (8, 2), (9, 4), (10, 7), (11, 3)]
)
def test_how_many_different_runs_a_table_has(table: int, runs: int) -> None:
    found = recipes(f"libra-table-{table}")
    keys = {run_key(recipe, len(recipe.stages), "data") for recipe in found.values()}
    assert len(keys) == runs == len(found) - (table == 10)  # there, S = 10 and tau = .025 are both the default


@pytest.mark.parametrize(
    ("table", "where"),
    [
        (4, {"stages.region_sampler"}),
        (5, {"model.neck"}),
        (6, {"stages.box_loss", "stages.box_weight"}),
        (7, {"stages.classification_loss"}),
    ],
)
def test_rows_differ_in_one_place(table: int, where: set[str]) -> None:
    first, *others = recipes(f"libra-table-{table}").values()
    for other in others:
        found = changed_keys(first, other)
        assert found
        assert found <= where


@pytest.mark.parametrize("table", range(3, 8))
def test_ablations_on_coco_have_one_proposal_network_in_common(table: int) -> None:
    found = recipes(f"libra-table-{table}")
    planned = plan_runs(list(found.values()), "data")
    (proposer,) = (run for run in planned if run.parent is None)
    assert [stage.name for stage in proposer.recipe.stages] == ["proposals"]
    assert {run.parent for run in planned} == {None, proposer.key}


def test_rows_that_several_tables_have_are_the_same_run() -> None:
    def key(table: int, label: str) -> str:
        recipe = recipes(f"libra-table-{table}")[label]
        return run_key(recipe, len(recipe.stages), "data")

    base = key(3, "Faster R-CNN")
    assert base == key(4, "Faster R-CNN") == key(5, "Faster R-CNN") == key(6, "smooth L1")
    assert key(3, "+ LGR-L1") == key(7, "Libra R-CNN")
    assert key(3, "+ LGR-CE") == key(7, "LGR-CE .8/1")
    assert key(3, "+ samples") != key(4, "K = 3")  # the one with positives per object, the other without
    assert key(9, "Mask R-CNN") == key(10, "Mask R-CNN")


def test_the_strongest_row_alone_has_deformable_convolutions() -> None:
    backbones = [recipe.model.model_dump()["backbone"] for recipe in recipes("libra-table-1").values()]
    assert [(backbone["name"], backbone["deformable"] is None) for backbone in backbones] == [
        ("resnet50", True),
        ("resnet101", True),
        ("resnext101_64x4d", False),
    ]


def test_schedules() -> None:
    assert {recipe.stages[-1].schedule.epochs for recipe in recipes("libra-table-1").values()} == {24}
    for table in range(2, 12):
        for recipe in recipes(f"libra-table-{table}").values():
            schedule = recipe.stages[-1].schedule
            assert (schedule.epochs, schedule.batch_size) == (12, 16)
    voc = recipes("libra-table-11")["Libra, R-50"]
    assert voc.stages[-1].schedule.milestones == (0.75,)
    assert voc.stages[-1].optimiser.lr == 0.01
    lvis = recipes("libra-table-9")["Libra"]
    assert (lvis.images.short_sides[0], lvis.images.short_sides[-1]) == (640, 800)
