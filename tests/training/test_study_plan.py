"""Which runs a study needs, and that a shared beginning changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longtail.data.scenes import GeneratedSet
from longtail.schema import Recipe, UsageError, load_recipe
from longtail.schema.study import load_study
from longtail.training import api
from longtail.training.study_plan import first_stages, go_on_from, plan_runs, row_recipe, run_key

FAST = [
    "scale=tiny",
    "model.backbone=tiny32",
    "model.neck.channels=16",
    "model.regions.channels=32",
    "images.short_sides=[64]",
    "images.test_short_side=64",
    "groups.edges=[5, 25]",
    "stages.*.schedule.images=24",
    "stages.*.schedule.warmup_images=4",
]
TWO = """
extends: baseline
summary: End to end, then the classifier alone.
stages:
  - name: end-to-end
  - name: classifier
    sampler: {type: SAMPLER}
    trainable: {only: [box.classifier], reinitialise: [box.classifier]}
"""


def recipe(folder: Path, kind: str, *overrides: str) -> Recipe:
    if kind in ("baseline", "rfs"):
        return load_recipe(kind, [*FAST, *overrides])
    file = folder / f"{kind}.yaml"
    file.write_text(TWO.replace("SAMPLER", kind))
    return load_recipe(file, [*FAST, *overrides])


def test_equal_runs_and_equal_beginnings_are_trained_once(tmp_path: Path) -> None:
    wanted = [
        recipe(tmp_path, "baseline"),
        recipe(tmp_path, "baseline", "workers=3"),
        recipe(tmp_path, "rfs"),
        recipe(tmp_path, "class_aware"),
        recipe(tmp_path, "uniform"),
        recipe(tmp_path, "uniform", "seed=1"),
    ]
    planned = plan_runs(wanted, "data")
    by_key = {run.key: run for run in planned}
    assert len(planned) == 5, "the second row is the first with another number of workers"
    crt, control, other_seed = (by_key[run_key(each, 2, "data")] for each in wanted[3:])
    assert crt.parent == control.parent == run_key(wanted[0], 1, "data"), "the baseline is their first stage"
    assert other_seed.parent is None, "nobody shares its beginning"
    order = [run.key for run in planned]
    assert order.index(crt.parent) < order.index(crt.key)
    assert len({run.name for run in planned}) == 5
    assert plan_runs(wanted, "other data")[0].key not in by_key


def test_a_common_beginning_that_is_nobodys_whole_is_a_run_of_its_own(tmp_path: Path) -> None:
    wanted = [recipe(tmp_path, "class_aware"), recipe(tmp_path, "uniform")]
    planned = plan_runs(wanted, "data")
    assert [len(run.recipe.stages) for run in planned] == [1, 2, 2]
    assert {run.parent for run in planned[1:]} == {planned[0].key}
    assert planned[0].recipe.stages[0] == wanted[0].stages[0]
    assert len(plan_runs(wanted[:1], "data")) == 1


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("workers=7", True),
        ("summary=another", True),
        ("seed=1", False),
        ("model.regions.channels=16", False),
        ("images.flip=0.1", False),
        ("stages.end-to-end.optimiser.lr=0.5", False),
        ("stages.classifier.optimiser.lr=0.5", None),
    ],
)
def test_what_a_beginning_depends_on(change: str, same: bool | None, tmp_path: Path) -> None:
    """None: the whole differs, the first stage does not."""
    one, other = recipe(tmp_path, "uniform"), recipe(tmp_path, "uniform", change)
    assert (run_key(one, 1, "d") == run_key(other, 1, "d")) == (same is not False)
    assert (run_key(one, 2, "d") == run_key(other, 2, "d")) == (same is True)


def test_going_on_from_a_shared_beginning_gives_the_same_weights(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    what = recipe(tmp_path, "class_aware", "stages.end-to-end.weight_average=0.9")
    data = {"train": smoke_set.train, "images": smoke_set.images, "val": smoke_set.val}
    whole = api.train(what, out=tmp_path / "whole", **data)
    api.train(first_stages(what, 1), out=tmp_path / "first", **data)
    go_on_from(tmp_path / "first", tmp_path / "second", what)
    done = api.train(what, out=tmp_path / "second", resume=True, **data)
    one, other = (load_file(tmp_path / name / "checkpoints/last/model.safetensors") for name in ("whole", "second"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert done.results["bbox"].metrics == whole.results["bbox"].metrics
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "second" / "metrics.csv").read_bytes()
    log = (tmp_path / "second" / "log.txt").read_text()
    assert "resuming stage end-to-end after 6 steps" in log


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("rows: []\nbaseline: a", "rows"),
        ("baseline: a\nrows: [{label: b, recipe: rfs}]", "no row 'a' with a recipe"),
        ("baseline: a\nrows: [{label: a, recipe: rfs}, {label: a, recipe: rfs}]", "must differ"),
        ("baseline: a\nrows: [{label: a}]", "quoted figures and the reason"),
        ("baseline: a\nrows: [{label: a, recipe: rfs, contrl: a}]", "contrl.*did you mean 'control'"),
        ("baseline: a\nrows: [{label: a, recipe: rfs}, {label: b, recipe: rfs, control: c}]", "no row 'c'"),
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_bad_studies_are_refused(text: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match):
        load_study(write(tmp_path / "s.yaml", text))
    with pytest.raises(UsageError, match="no study file"):
        load_study(tmp_path / "none.yaml")


def test_a_rows_recipe_may_lie_beside_the_study(tmp_path: Path) -> None:
    write(tmp_path / "mine.yaml", TWO.replace("SAMPLER", "uniform"))
    study = load_study(
        write(
            tmp_path / "s.yaml",
            "baseline: a\noverrides: [scale=tiny, images.flip=0]\nrows:\n  - {label: a, recipe: mine.yaml}",
        )
    )
    found = row_recipe(study, study.rows[0], tmp_path, 4, ["images.flip=0.25"])
    assert [stage.name for stage in found.stages] == ["end-to-end", "classifier"]
    assert (found.seed, found.images.flip, found.scale) == (4, 0.25, "tiny")
