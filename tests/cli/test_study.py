"""A small study from the command line: shared runs, reuse, failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import longtail
from longtail.cli.main import main
from longtail.data.scenes import GeneratedSet

STUDY = """
summary: A study of the smallest kind.
baseline: plain
seeds: 1
overrides:
  - scale=tiny
  - model.backbone=tiny32
  - model.neck.channels=16
  - model.regions.channels=32
  - images.short_sides=[64]
  - images.test_short_side=64
  - groups.edges=[5, 25]
  - stages.*.schedule.images=24
rows:
  - {label: plain, recipe: baseline}
  - {label: again, recipe: baseline, overrides: [workers=1]}
  - {label: two, recipe: two.yaml}
  - {label: paper, quoted: {AP: 22.6}, reason: needs a chain of models}
"""
TWO = """
extends: baseline
stages:
  - name: end-to-end
  - name: classifier
    trainable: {only: [box.classifier]}
"""


@pytest.fixture
def words(tmp_path: Path, smoke_set: GeneratedSet) -> list[str]:
    (tmp_path / "small.yaml").write_text(STUDY)
    (tmp_path / "two.yaml").write_text(TWO)
    data = ["--train", str(smoke_set.train), "--images", str(smoke_set.images), "--val", str(smoke_set.val)]
    return ["study", str(tmp_path / "small.yaml"), *data, "--out", str(tmp_path / "out"), "--quiet"]


def test_a_study_is_planned_run_and_reused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert "3 figures come from 2 runs" in plan
    assert "two-seed0" in plan
    assert "from the end of baseline-seed0" in plan

    assert main(words) == 0
    shown = capsys.readouterr()
    assert "two - plain" in shown.out
    assert "paper: quoted, not run" in shown.out
    runs = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "out" / "runs").iterdir())
    assert runs == ["baseline-seed0", "two-seed0"]
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    figures = {row["label"]: row.get("results") for row in content["rows"]}
    assert figures["plain"]["bbox"]["AP"]["by_seed"] == figures["again"]["bbox"]["AP"]["by_seed"]
    assert {path.name for path in (tmp_path / "out").glob("table.*")} == {
        "table.json", "table.md", "table.csv", "table.txt",
    }  # fmt: skip

    assert main([*words, "--json"]) == 0
    again = capsys.readouterr()
    assert "2 of 2 runs are finished" in again.err
    assert json.loads(again.out)["rows"] == content["rows"]


def test_a_failing_run_leaves_the_others(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "small.yaml"
    study.write_text(study.read_text() + "  - {label: bad, recipe: rfs, overrides: [images.max_pixels=1]}\n")
    assert main([*words, "--only", "bad", "--jobs", "1"]) == 1
    shown = capsys.readouterr()
    assert "1 runs failed: rfs-seed0" in shown.err
    assert "picture-huge" in shown.err
    assert "bad: 0 of 1 seeds have figures" in shown.out
    assert main([*words, "--only", "nothing"]) == 2
    assert main([*words, "--jobs", "0"]) == 2
    assert main(["study", "unknown-study"]) == 2


def test_every_shipped_study_can_be_planned() -> None:
    from longtail.schema.study import load_study
    from longtail.training.study_plan import plan_runs, row_recipe

    files = sorted((Path(longtail.__file__).parent / "studies").glob("*.yaml"))
    assert files
    for file in files:
        study = load_study(file)
        recipes = [row_recipe(study, row, file.parent, 0, []) for row in study.rows if row.recipe is not None]
        assert plan_runs(recipes, "data"), file
