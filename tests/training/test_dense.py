"""One-stage detectors and proposal networks in whole runs: resumed, evaluated, and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longtail.cli.main import main
from longtail.data.scenes import GeneratedSet
from longtail.schema import Recipe, UsageError, load_recipe
from longtail.training import loop
from longtail.training.api import evaluate, predict, resume, train

FAST = [
    "scale=tiny",
    "model.backbone=tiny32",
    "model.neck.channels=16",
    "images.short_sides=[64]",
    "images.test_short_side=64",
    "groups.edges=[5, 25]",
    "stages.*.schedule.images=24",
    "stages.*.schedule.warmup_images=4",
]


def run(made: GeneratedSet, out: Path, recipe: Recipe):  # type: ignore[no-untyped-def]
    return train(recipe, train=made.train, images=made.images, val=made.val, out=out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("name", "state"), [("efl", "head.classification_loss.gradients"), ("ghm", "density.counts")])
def test_cut_off_and_resumed_with_the_state_of_the_losses(
    name: str, state: str, smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(name, FAST)
    whole = run(smoke_set, tmp_path / "whole", recipe)
    original, steps = loop.step_losses, 0

    def dying(*arguments: object):  # type: ignore[no-untyped-def]
        nonlocal steps
        steps += 1
        if steps > 3:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(loop, "step_losses", dying)
    with pytest.raises(Killed):
        run(smoke_set, tmp_path / "cut", recipe)
    monkeypatch.setattr(loop, "step_losses", original)
    resume(tmp_path / "cut")
    one, other = (weights(tmp_path / which / "checkpoints" / "last") for which in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    kept = [value for key, value in one.items() if state in key]
    assert kept
    assert all(value.abs().sum() > 0 for value in kept)
    assert evaluate(tmp_path / "cut")["auto"]["bbox"].metrics == whole.results["bbox"].metrics


def test_retinanet_from_the_command_line(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    data = ["--train", str(smoke_set.train), "--val", str(smoke_set.val), "--images", str(smoke_set.images)]
    assert main(["train", "retinanet", *FAST, *data, "--out", str(out), "--quiet"]) == 0
    names = {line.split(",")[3] for line in (out / "metrics.csv").read_text().splitlines()[1:]}
    assert {"loss_classifier", "loss_box_reg"} <= names
    few = ["eval", str(out), "--split", "few", "--quiet", "model.inference.detections_per_image=2"]
    assert main(few) == 0
    found = json.loads((out / "eval" / "few" / "results.bbox.json").read_text())
    assert 0 < len(found) <= 2 * 40
    arguments = ["predict", str(out), str(smoke_set.images), "--out", str(tmp_path / "found"), "--quiet"]
    assert main([*arguments, "--score", "0.001"]) == 0
    annotations = json.loads((tmp_path / "found" / "predictions.json").read_text())["annotations"]
    assert annotations
    assert {len(entry["bbox"]) for entry in annotations} == {4}


def test_a_proposal_network_is_measured_by_its_recall(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(smoke_set, out, load_recipe("libra-rpn", FAST))
    metrics = result.results["bbox"].metrics
    assert list(metrics) == ["AR@100", "AR@300", "AR@1000", "AR", "ARs", "ARm", "ARl"]
    assert 0 < metrics["AR@100"] <= metrics["AR@300"] <= metrics["AR@1000"] == metrics["AR"]
    assert (out / "checkpoints" / "best").is_dir()
    written = json.loads((out / "eval" / "val" / "metrics.json").read_text())["bbox"]
    assert (written["protocol"], written["metrics"]) == ("proposals", metrics)
    again = evaluate(out, split="again")["auto"]
    assert again["bbox"].metrics == metrics
    assert not (out / "eval" / "again" / "results.bbox.json").exists(), "there are no classes to write"
    with pytest.raises(UsageError, match="finds no classes; of the protocols only 'proposals'"):
        evaluate(out, protocols=["coco"])
    with pytest.raises(UsageError, match="which finds no classes; see `longtail proposals`"):
        predict(out, smoke_set.images, out=tmp_path / "found")
    assert main(["eval", str(out), "--quiet", "--protocol", "proposals"]) == 0
    assert main(["proposals", str(out), "--out", str(tmp_path / "kept"), "--quiet"]) == 0
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"train.arrow", "val.arrow"}


def test_recall_of_a_detector_with_classes_looks_at_none(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    run(smoke_set, tmp_path / "run", load_recipe("retinanet", FAST))
    found = evaluate(tmp_path / "run", protocols=["coco", "proposals"])
    assert found["proposals"]["bbox"].metrics["AR@100"] >= found["coco"]["bbox"].metrics["AR@100"]
