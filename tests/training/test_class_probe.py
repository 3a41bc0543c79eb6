"""What finished runs say about objects: the same as detecting with the objects' boxes for proposals."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longtail.cli.main import main
from longtail.data import AnnotationTable
from longtail.data.dataset import DetectionDataset
from longtail.data.scenes import GeneratedSet
from longtail.schema import UsageError, load_recipe
from longtail.training import class_probe
from longtail.training.api import train
from longtail.training.assemble import model_from_checkpoint
from longtail.training.progress import Silent

SMALL = [
    "scale=tiny", "model.backbone=tiny32", "model.neck.channels=16", "images.short_sides=[64]",
    "images.test_short_side=48", "groups.edges=[5, 25]", "stages.*.schedule.images=16",
    "stages.*.schedule.warmup_images=4",
]  # fmt: skip
MODELS = {
    "faster": ["model.regions.channels=32"],
    "cascade": ["model=cascade_rcnn", "model.regions.channels=32"],
    "retina": ["model=retinanet", "stages.*.classification_loss=focal"],
}


@pytest.fixture(scope="module")
def runs(smoke_set: GeneratedSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose validation pictures have one object each, the first."""
    home = tmp_path_factory.mktemp("probe")
    content = json.loads(smoke_set.val.read_text())
    first = {annotation["image_id"]: annotation for annotation in reversed(content["annotations"])}
    (home / "one.json").write_text(json.dumps(content | {"annotations": list(first.values())}))
    for name, changes in MODELS.items():
        train(
            load_recipe("baseline", [*SMALL, *changes]),
            train=smoke_set.train,
            images=smoke_set.images,
            val=home / "one.json",
            out=home / name,
        )
    return home


def probe(run: Path, split: class_probe.Split = "val", pictures: int | None = None) -> class_probe.ClassProbe:
    return class_probe.probe_classes(run, split=split, pictures=pictures, device="cpu", progress=Silent())


@pytest.mark.parametrize("name", ["faster", "cascade"])
def test_scores_are_those_of_detecting_in_the_objects_boxes(name: str, runs: Path, smoke_set: GeneratedSet) -> None:
    dataset = DetectionDataset(AnnotationTable.from_coco(runs / "one.json"), smoke_set.images)
    model, _ = model_from_checkpoint(runs / name / "checkpoints" / "last")
    model.inference = replace(model.inference, score_threshold=0.0, detections_per_image=100)  # type: ignore[union-attr]
    total, objects = np.zeros(12), np.zeros(12)
    for image, target in (dataset[row] for row in range(len(dataset))):
        (found,) = model.detect([image], proposals=[target["boxes"]])  # type: ignore[operator]
        (label,) = target["labels"].tolist()
        (own,) = found["scores"][found["labels"] == label].tolist()
        total[label] += own
        objects[label] += 1
    assert objects.sum() >= 3
    seen = probe(runs / name)
    assert seen.objects.tolist() == objects.tolist()
    there = objects > 0
    assert seen.score[there] == pytest.approx(total[there] / objects[there], rel=1e-5)
    assert np.isnan(seen.score[~there]).all()
    assert np.isnan(seen.accuracy[~there]).all()


def test_means_by_hand(runs: Path, smoke_set: GeneratedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 0 wins in the first picture, the background in all others, the own class in none but the first."""
    table = AnnotationTable.from_coco(smoke_set.train)
    calls = []

    def scores(model: Any, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        calls.append(len(boxes))
        given = torch.full((len(boxes), 13), 0.125)
        given[:, 0 if len(calls) == 1 else 12] = 0.5
        return given

    monkeypatch.setattr(class_probe, "own_scores", scores)
    seen = probe(runs / "faster", "train", pictures=5)
    objects = np.diff(table.image_start)
    rows = np.flatnonzero(objects)[:5]
    assert calls == objects[rows].tolist()
    labels = [table.label[slice(*table.image_start[row : row + 2])] for row in rows]
    counts = np.bincount(np.concatenate(labels), minlength=12)
    assert seen.objects.tolist() == counts.tolist()
    first = int((labels[0] == 0).sum())
    if counts[0]:
        assert seen.score[0] == pytest.approx(0.125 + 0.375 * first / counts[0])
        assert seen.accuracy[0] == pytest.approx(first / counts[0])
    others = np.flatnonzero(counts[1:]) + 1
    assert (seen.score[others] == 0.125).all()
    assert (seen.accuracy[others] == 0).all()


def test_drawn_by_the_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["figure", "scores", str(runs / "faster"), str(runs / "cascade"), "--quiet", "--out", str(tmp_path)]
    assert main(words) == 0
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["faster"] * 12 + ["cascade"] * 12
    counts = [int(row["training_objects"]) for row in rows[:12]]
    assert counts == sorted(counts, reverse=True)
    assert [row["score"] == "" for row in rows] == [row["objects"] == "0" for row in rows]
    assert main(["figure", "weight-norms", str(runs / "faster"), "--out", str(tmp_path)]) == 0
    assert main(["figure", "training-scores", str(runs / "faster"), "--out", str(tmp_path)]) == 2
    assert "kept no mean scores" in capsys.readouterr().err


def test_what_cannot_be_looked_at_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="RetinaNet has no classifier of regions; use a run of Faster, Mask"):
        probe(runs / "retina")
    with pytest.raises(UsageError, match="is a checkpoint; its run's folder names the training pictures"):
        probe(runs / "faster" / "checkpoints" / "last", "train")
    with pytest.raises(UsageError, match="neither a run nor a checkpoint"):
        probe(tmp_path)
