"""Epochs of recipes, counted without training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from longtail.cli.main import main
from longtail.data import AnnotationTable
from longtail.data.scenes import GeneratedSet
from longtail.reports.simulation import simulate
from longtail.schema import UsageError, load_recipe


def test_sampler_and_memory_apart_and_together(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    own = table.statistics()
    found = simulate(load_recipe("rio", ["scale=tiny", "stages.*.sampler.threshold=0.5"]), table, epochs=20)
    assert found.labels == {
        "plain": "plain",
        "sampler": "repeat_factor",
        "memory": "plain + memory",
        "both": "repeat_factor + memory",
    }
    assert found.instances["plain"].tolist() == own.instance_counts.tolist()
    added = found.instances["memory"] - found.instances["plain"]
    assert (added[~found.targeted] == 0).all()
    assert (added[found.targeted] > 0).all()
    assert found.images["sampler"] > found.images["plain"]
    assert (found.visits["both"] >= found.visits["memory"])[found.targeted].all()
    # at most 4 rows a visit
    assert (added <= 4 * found.visits["memory"]).all()


def test_only_what_the_recipe_has(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    assert list(simulate(load_recipe("ocs", scale="tiny"), table, epochs=1).labels) == ["plain", "memory"]
    rfs = simulate(load_recipe("rfs", scale="tiny"), table, epochs=1)
    assert list(rfs.labels) == ["plain", "sampler"]
    assert "bank updates" not in rfs.text()
    with pytest.raises(UsageError, match="neither an image sampler nor object_memory"):
        simulate(load_recipe("baseline", scale="tiny"), table)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"positives": 0}, {"processes": 3}])
def test_refuses_numbers_out_of_range(smoke_set: GeneratedSet, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="batch of 4 is split"):
        simulate(load_recipe("rio", scale="tiny"), AnnotationTable.from_coco(smoke_set.train), **options)


def test_crowds_count_as_little_as_in_the_statistics(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    content = json.loads(smoke_set.train.read_text())
    content["annotations"][0]["iscrowd"] = 1
    (tmp_path / "crowd.json").write_text(json.dumps(content))
    table = AnnotationTable.from_coco(tmp_path / "crowd.json")
    found = simulate(load_recipe("ocs", scale="tiny"), table, epochs=1)
    assert found.instances["plain"].tolist() == table.statistics().instance_counts.tolist()


def test_the_command_prints_and_draws(
    smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["simulate", "rio", "scale=tiny", "--train", str(smoke_set.train), "--out", str(tmp_path), "--epochs", "2"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "bank updates per targeted class" in shown
    assert all((tmp_path / f"epochs.{ending}").stat().st_size > 0 for ending in ("png", "svg", "csv"))
    with (tmp_path / "epochs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert float(rows[0]["instances plain"]) == max(float(row["instances plain"]) for row in rows)

    assert main([*words[:-4], "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["files"] == []
    total = np.array([row["instances plain"] for row in content["classes"]]).sum()
    assert total == sum(group["instances"]["plain"] for group in content["groups"])
