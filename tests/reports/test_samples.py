"""What a run says of its samples is what its steps saw and drew."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longtail.cli.main import main
from longtail.data.scenes import GeneratedSet
from longtail.replay import VirtualFeatures
from longtail.reports.samples import count_samples, virtual_stage
from longtail.schema import Recipe, UsageError, load_recipe
from longtail.training.api import train


def recipe(name: str, *overrides: str) -> Recipe:
    small = [
        "scale=tiny", "model.backbone=tiny32", "model.neck.channels=16", "model.regions.channels=32",
        "images.short_sides=[48]", "images.test_short_side=48", "groups.edges=[5, 25]",
        "stages.*.schedule.images=128", "stages.*.schedule.warmup_images=4",
    ]  # fmt: skip
    return load_recipe(name, [*small, *overrides])


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[float]]]:
    """Labels of the objects and probabilities of every forward pass that trains, filled by training."""
    found: list[tuple[list[int], list[float]]] = []
    draw = VirtualFeatures._draw

    def watched(self: VirtualFeatures, targets: Any) -> Any:
        labels = torch.cat([target["labels"] for target in targets]).tolist()
        drawn = self.prob if self.steps >= self.warmup_steps else torch.zeros_like(self.prob)
        found.append((labels, drawn.tolist()))
        return draw(self, targets)

    monkeypatch.setattr(VirtualFeatures, "_draw", watched)
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_counts_are_those_of_the_steps(
    accumulate: int, smoke_set: GeneratedSet, tmp_path: Path, steps: list[tuple[list[int], list[float]]]
) -> None:
    what = recipe(
        "fasa",
        f"stages.*.schedule.accumulate={accumulate}",
        "stages.*.passes_every.images=24",
        "stages.*.replay=[{type: virtual_features, warmup_images: 30, grouping: none}]",
    )
    train(what, train=smoke_set.train, images=smoke_set.images, out=tmp_path / "run")
    assert len(steps) == 32 * accumulate  # 128 pictures are more than an epoch
    samples = count_samples(tmp_path / "run")
    objects, virtual = np.zeros(12, int), np.zeros(12)
    for labels, chances in steps:
        for label in labels:
            objects[label] += 1
        virtual += chances
    assert samples.objects.tolist() == objects.tolist()
    np.testing.assert_allclose(samples.virtual, virtual, rtol=1e-5)
    assert steps[0][1] != steps[-1][1] != steps[len(steps) // 2][1]  # the rounds changed something

    assert main(["figure", "samples", str(tmp_path / "run"), "--out", str(tmp_path / "figure")]) == 0
    with (tmp_path / "figure" / "samples.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["group"] for row in written] == sorted((row["group"] for row in written), key="fcr".index)
    assert sorted(int(row["objects"]) for row in written) == sorted(objects.tolist())
    np.testing.assert_allclose(sum(float(row["virtual"]) for row in written), virtual.sum(), rtol=1e-5)


def test_static_features_without_rounds(
    smoke_set: GeneratedSet, tmp_path: Path, steps: list[tuple[list[int], list[float]]]
) -> None:
    what = recipe(
        "rfs",
        "stages.*.schedule.images=16",
        "stages.*.replay=[{type: virtual_features, warmup_images: 4, raise_factor: 1, lower_factor: 1}]",
    )
    train(what, train=smoke_set.train, images=smoke_set.images, out=tmp_path / "run")
    samples = count_samples(tmp_path / "run")
    np.testing.assert_allclose(samples.virtual, np.sum([chances for _, chances in steps], axis=0), rtol=1e-12)
    np.testing.assert_allclose(samples.virtual.sum(), 3, rtol=1e-12)  # one a step, in three of four steps

    last = tmp_path / "run" / "checkpoints" / "last"
    shutil.copy(last / "rank-0.pt", last / "rank-1.pt")  # a second process draws rows of its own
    np.testing.assert_allclose(count_samples(tmp_path / "run").virtual, 2 * samples.virtual, rtol=1e-12)


def test_other_runs_are_refused(smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(
        recipe("baseline", "stages.*.schedule.images=4"),
        train=smoke_set.train,
        images=smoke_set.images,
        out=tmp_path / "run",
    )
    assert main(["figure", "samples", str(tmp_path / "run")]) == 2
    assert "is no run with virtual features" in capsys.readouterr().err
    assert main(["figure", "samples"]) == 2
    assert "needs one run" in capsys.readouterr().err


def test_stages_on_chosen_objects_are_refused() -> None:
    replayed = "stages.region-transfer.replay=[virtual_features]"
    with pytest.raises(UsageError, match="'region-transfer' trains on chosen objects"):
        virtual_stage(load_recipe("stepwise-rcnn", ["scale=tiny", replayed]), "runs/x")
