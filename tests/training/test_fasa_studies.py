"""FASA's studies: rows that are run resolve, differ from each other, and train without the same images."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

import pytest

from longtail.data.scenes import GeneratedSet
from longtail.schema import Recipe
from longtail.schema.passes import ClassLosses
from longtail.schema.replay import VirtualFeatures
from longtail.schema.study import load_study
from longtail.training.api import train
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


WITH_FASA = [
    *(row.label for row in load_study(FOLDER / "fasa-table-4.yaml").rows if "FASA" in row.label),
    "Cascade R101, Seesaw + FASA",
]
SMALL = [
    "scale=tiny", "model.backbone=tiny32", "model.neck.channels=16", "model.regions.channels=32",
    "model.masks.channels=[8, 8]", "images.short_sides=[64]", "images.test_short_side=64", "groups.edges=[5, 25]",
    "stages.*.schedule.images=8", "stages.*.schedule.warmup_images=4", "stages.*.passes_every.images=4",
]  # fmt: skip


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


def test_rows_are_compared_with_rows_on_the_same_images() -> None:
    for name in NAMES:
        study, found = load_study(FOLDER / f"{name}.yaml"), recipes(name)
        for row in study.rows:
            if row.recipe is not None:
                for other in (row.baseline or study.baseline, row.control or row.label):
                    assert found[row.label].holdout == found[other].holdout


def test_the_schedules_of_table_4() -> None:
    rows = recipes("fasa-table-4")
    assert [stage.schedule.epochs for stage in rows["BAGS + FASA"].stages] == [12, 12]
    assert not rows["cRT + FASA"].stages[0].replay
    assert rows["Softmax, RFS + FASA"].stages[0].schedule.epochs == 24
    official = virtual(rows["Softmax, uniform + FASA (released code)"])
    assert (official.grouping, official.norm, official.sync) == ("affinity_official", "total", False)


def test_rounds_on_cifar_measure_every_picture_once() -> None:
    rounds = [
        work
        for recipe in recipes("fasa-table-7").values()
        for stage in recipe.stages
        for work in stage.passes_after_epoch
        if isinstance(work, ClassLosses)
    ]
    assert len(rounds) == 4
    assert {work.repeat_threshold for work in rounds} == {None}


def test_rounds_of_the_tiny_study() -> None:
    stage = recipes("fasa-tiny")["fasa"].stages[0]
    assert stage.schedule.images is not None
    assert stage.passes_every.images is not None
    warmup = virtual(recipes("fasa-tiny")["fasa"]).warmup_images
    assert warmup == 480
    assert (stage.schedule.images - warmup) // stage.passes_every.images >= 6


@pytest.mark.parametrize("label", WITH_FASA)
def test_rows_train_with_every_classifier_loss_and_stage(label: str, smoke_set: GeneratedSet, tmp_path: Path) -> None:
    """Tiny, for two steps a stage: features are drawn, their losses are finite, and a round moves probabilities."""
    study = load_study(FOLDER / f"fasa-table-{5 if 'Cascade' in label else 4}.yaml")
    row = next(row for row in study.rows if row.label == label)
    last = row_recipe(study, row, FOLDER, 0, []).stages[-1].name
    part = '[{"type": "virtual_features", "warmup_images": 0, "scale": 6, "grouping": "none"}]'
    recipe = row_recipe(study, row, FOLDER, 0, [*SMALL, f"stages.{last}.replay={part}"])
    val = smoke_set.val if "released" in label else None
    train(recipe, train=smoke_set.train, images=smoke_set.images, val=val, out=tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [row for row in csv.DictReader(file) if row["metric"].startswith("loss_replay")]
    assert {row["stage"] for row in losses} == {last}
    assert all(0 < float(row["value"]) < 1e3 for row in losses)
    with (tmp_path / "run" / "class_losses.csv").open() as file:
        rounds = list(csv.DictReader(file))
    assert {row["stage"] for row in rounds} == {last}
    first, second = rounds[:12], rounds[12:]
    assert any(one["probability"] != other["probability"] for one, other in zip(first, second, strict=True))
