"""A finished run looked at: its errors, and the regions samplers would choose among its proposals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from longtail.cli.main import main
from longtail.data.scenes import GeneratedSet
from longtail.data.sources import read_sources
from longtail.schema import UsageError, load_recipe
from longtail.training.api import evaluate, train
from longtail.training.diagnose import Probe, errors_of, probe, supercategories
from longtail.training.progress import Silent

FAST = ["scale=tiny", "model.backbone=tiny32", "model.neck.channels=16", "model.regions.channels=32",
        "images.short_sides=[64]", "images.test_short_side=64", "stages.*.schedule.images=16",
        "stages.*.schedule.warmup_images=4"]  # fmt: skip


@pytest.fixture(scope="module")
def run(smoke_set: GeneratedSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("diagnosed") / "run"
    train(load_recipe("baseline", FAST), train=smoke_set.train, images=smoke_set.images, val=smoke_set.val, out=out)
    return out


def looked_at(run: Path, **changes: object) -> Probe:
    options = {"pictures": 3, "picture": None, "seed": 0, "device": "cpu", "progress": Silent()}
    return probe(run, **{**options, **changes})


def test_samplers_choose_among_the_same_candidates(run: Path) -> None:
    found = looked_at(run)
    assert len(found.chosen) == 3
    assert found.negative_iou == 0.5
    for one in found.chosen:
        assert list(one.negatives) == ["random", "IoU-balanced", "hard examples"]
        for name, boxes in one.negatives.items():
            assert len(boxes) + len(one.positives[name]) <= 32
            iou = box_iou(torch.as_tensor(boxes), torch.as_tensor(one.objects)).max(dim=1).values
            assert np.allclose(iou, one.negative_iou[name], atol=1e-4)
            assert (one.negative_iou[name] < 0.5).all()
            assert boxes.min() >= 0 and boxes.max() <= 64.01
        best = box_iou(torch.as_tensor(one.positives["random"]), torch.as_tensor(one.objects)).max(dim=1).values
        assert (best >= 0.5 - 1e-4).all()
    chosen = [tuple(one.negatives[name].tobytes() for name in one.negatives) for one in found.chosen]
    assert all(len(set(negatives)) == 3 for negatives in chosen)  # each sampler makes a choice of its own
    again = looked_at(run)
    for name, values in found.overlaps().items():
        assert np.array_equal(values, again.overlaps()[name])
    other = looked_at(run, seed=1)
    assert [one.image_index for one in other.chosen] != [one.image_index for one in found.chosen]


def test_one_picture(run: Path, smoke_set: GeneratedSet) -> None:
    table = read_sources(smoke_set.train, smoke_set.images)
    crowded = looked_at(run, picture="")
    assert crowded.chosen[0].image_index == int(np.diff(table.image_start).argmax())
    named = looked_at(run, picture=table.file_names[5])
    assert named.chosen[0].image_index == 5
    assert np.allclose(
        named.chosen[0].objects[:, :2], table.boxes_xywh[table.image_start[5] : table.image_start[6], :2]
    )
    assert named.picture().size == (64, 64)
    with pytest.raises(UsageError, match=r"no training picture is called nothing\.png"):
        looked_at(run, picture="nothing.png")


def test_errors_are_those_of_the_evaluation(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="longtail eval"):
        errors_of(run)
    result = evaluate(run)["auto"]["bbox"]
    curves, analysis = errors_of(run)
    assert curves.areas()["C50"] == pytest.approx(result.metrics["AP50"], abs=1e-9)
    assert set(analysis.lost) >= {"Cls", "Loc", "Bkg", "Miss"}
    for words in (["errors", str(run)], ["negatives", str(run), "--pictures", "2"], ["regions", str(run)]):
        assert main(["figure", *words, "--out", str(tmp_path), "--quiet"]) == 0
        assert (tmp_path / f"{words[0]}.png").stat().st_size > 5000


def test_supercategories(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    content = json.loads(Path(smoke_set.val).read_text())
    for number, entry in enumerate(content["categories"]):
        entry["supercategory"] = f"s{number % 2}"
    file = tmp_path / "val.json"
    file.write_text(json.dumps(content))
    truth = read_sources(file, smoke_set.images)
    assert supercategories([file], truth) == [f"s{n % 2}" for n in range(12)]
    assert supercategories([file, file], truth) is None
    del content["categories"][3]["supercategory"]
    file.write_text(json.dumps(content))
    assert supercategories([file], truth) is None
