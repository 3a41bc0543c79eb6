"""Pictures classified from the command line on: train, eval, resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longtail.cli.main import main
from longtail.data.scenes import GeneratedSet
from longtail.data.sources import read_sources
from longtail.data.write_pictures import write_crops
from longtail.schema import DataError, Recipe, UsageError, load_recipe
from longtail.training import loop
from longtail.training.api import evaluate, predict, resume, train

FAST = ["model.backbone=cifar_resnet20", "model.size=[16, 16]", "workers=0", "threads=1",
        "stages.*.schedule.batch_size=16", "stages.*.schedule.warmup_images=0", "images.short_sides=[16]",
        "images.padded_crop=2", "groups.edges=[5, 25]"]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(smoke_set: GeneratedSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures")
    for split in ("train", "val"):
        write_crops(read_sources(getattr(smoke_set, split), smoke_set.images), out / split)
    return out


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, [*FAST, *overrides])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in load_file(run / "checkpoints/last/model.safetensors").items()}


@pytest.mark.parametrize("name", ["cifar-lt-baseline", "cifar-lt-ldam-drw"])
def test_recipes_learn(name: str, pictures: Path, tmp_path: Path) -> None:
    what = recipe(name, "stages.*.schedule.images=960", "stages.*.schedule.milestones=[]")
    found = train(what, train=pictures, val=pictures, out=tmp_path / "run").results["picture"]
    assert found.metrics["top1"] > 0.25, found.metrics  # chance: 1 of 12
    again = evaluate(tmp_path / "run")["auto"]["picture"]
    assert again.metrics == found.metrics
    assert (tmp_path / "run/eval/val/picture/per_class.csv").is_file()


def test_cut_off_and_resumed(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = recipe(
        "cifar-lt-ldam-drw",
        "stages.*.schedule.images=96",
        "stages.*.sampler=repeat_factor",
        "stages.*.replay=[{type: object_memory, count: 2, max_images: 20}]",
    )
    train(what, train=pictures, val=pictures, out=tmp_path / "whole")
    steps, original = 0, loop.step_losses

    def dying(*arguments: object):
        nonlocal steps
        steps += 1
        if steps > 9:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "step_losses", dying)
    with pytest.raises(KeyboardInterrupt):
        train(what, train=pictures, val=pictures, out=tmp_path / "cut")
    monkeypatch.setattr(loop, "step_losses", original)
    resume(tmp_path / "cut")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (tmp_path / "cut/metrics.csv").read_bytes()


def test_virtual_features_of_pictures_adapt_to_held_out_ones(pictures: Path, tmp_path: Path) -> None:
    """FASA, table 7: a cosine classifier, virtual features, rounds of class losses."""
    changes = [
        "stages.*.schedule.images=320",
        "stages.*.passes_every.images=80",
        "holdout.fraction=0.2",
        "stages.end-to-end.replay=[{type: virtual_features, warmup_epochs: 0, scale: 100}]",
        "stages.end-to-end.passes_after_epoch=[class_losses]",
    ]
    what = recipe("cifar-lt-ldam-drw", *changes)
    train(what, train=pictures, out=tmp_path / "run")
    curves = (tmp_path / "run" / "metrics.csv").read_text()
    assert "loss_replay" in curves
    assert "virtual/expected_rows" in curves
    assert "class_loss/background" not in curves
    rows = (tmp_path / "run" / "class_losses.csv").read_text().splitlines()[1:]
    assert any(row.split(",")[-2] for row in rows)


def test_command_line_and_report(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "cifar-lt-baseline", *FAST, "stages.*.schedule.images=32", "--train", str(pictures),
             "--val", str(pictures), "--out", str(tmp_path / "run"), "--quiet"]  # fmt: skip
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "top1" in text and "balanced" in text
    assert "accuracy" in (tmp_path / "run/report.html").read_text()
    assert main(["eval", str(tmp_path / "run"), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["auto"]["picture"]["protocol"] == "top1"


def test_refusals(pictures: Path, smoke_set: GeneratedSet, tmp_path: Path) -> None:
    what = recipe("cifar-lt-baseline", "stages.*.schedule.images=16")
    with pytest.raises(DataError, match=r"but pictures that are classified have one label each.*longtail pictures"):
        train(what, train=smoke_set.train, images=smoke_set.images, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    train(what, train=pictures, val=pictures, out=tmp_path / "b")
    with pytest.raises(UsageError, match="has its accuracy alone"):
        evaluate(tmp_path / "b", protocols=["lvis"])
    with pytest.raises(UsageError, match="classifies whole pictures"):
        predict(tmp_path / "b", pictures, out=tmp_path / "c")
    with pytest.raises(UsageError, match="rows of background"):
        train(
            recipe("cifar-lt-baseline", "stages.*.classification_loss=group_softmax"),
            train=pictures,
            out=tmp_path / "d",
        )
