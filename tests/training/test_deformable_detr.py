"""Deformable DETR in whole runs: cut off and resumed, evaluated, predicting; two processes against one; refusals.

This file is also what each process runs: ``test_deformable_detr.py FOLDER``.
"""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longtail.build.model import build_model
from longtail.data import AnnotationTable
from longtail.data.scenes import GeneratedSet
from longtail.data.shapes import make_shapes
from longtail.schema import Recipe, UsageError, load_recipe
from longtail.training import api, loop

SETTINGS = [
    "scale=tiny", "model.backbone=tiny32", "model.channels=64", "model.hidden=32", "model.encoder_layers=1",
    "model.decoder_layers=2", "model.num_queries=20", "images.short_sides=[64]", "images.test_short_side=64",
    "groups.edges=[5, 25]", "model.inference.detections_per_image=10", "stages.*.schedule.images=24",
    "stages.*.schedule.warmup_images=4", "stages.*.schedule.batch_size=4",
]  # fmt: skip
STILL = [
    "stages.*.trainable.freeze=['backbone*.bn?', 'backbone*.shortcut.1']",
    "stages.*.classification_loss={type: eqlv2, loss_weight: 0.1}",
    # steps as long as their gradients: Adam makes as much of a rounding error as of a gradient
    "stages.*.optimiser={type: sgd, lr: 0.001}",
]


def run(made: GeneratedSet, out: Path, recipe: Recipe):  # type: ignore[no-untyped-def]
    return api.train(recipe, train=made.train, images=made.images, val=made.val, out=out)


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(run_folder / "checkpoints" / "last" / "model.safetensors")
    return {name: value.clone() for name, value in found.items()}


class Killed(Exception):
    """Stands for the end of the process."""


def test_cut_off_and_resumed_then_evaluated(
    smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(
        "deformable-detr",
        [*SETTINGS, "stages.*.classification_loss={type: eqlv2, loss_weight: 0.1}", "model.dropout=0.1"],
    )
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
    api.resume(tmp_path / "cut")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert api.evaluate(tmp_path / "cut")["auto"]["bbox"].metrics == whole.results["bbox"].metrics
    picture = sorted(path for path in smoke_set.images.rglob("*") if path.is_file())[0]
    assert api.predict(tmp_path / "cut", picture, out=tmp_path / "found", score_threshold=0.0).is_file()


@pytest.mark.parametrize(
    "loss", ["focal", "sigmoid", "{type: class_balanced, form: focal}", "efl", "eqlv2", "federated"]
)
def test_losses_for_queries_train(loss: str, smoke_set: GeneratedSet) -> None:
    recipe = load_recipe("deformable-detr", [*SETTINGS, f"stages.*.classification_loss={loss}"])
    statistics = AnnotationTable.from_coco(smoke_set.train).statistics()
    torch.manual_seed(0)
    model = build_model(recipe, recipe.stages[0], statistics, pretrained=False)
    target = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([1]), "draw_seed": 1}
    losses = model.losses([torch.rand(3, 64, 64)] * 2, [target] * 2)
    torch.stack(list(losses.values())).sum().backward()
    gradients = [value.grad for value in model.parameters() if value.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.*.classification_loss=softmax", "not for the query head"),
        ("stages.*.replay=[{type: object_memory}]", "has no place among them; use replay with faster_rcnn"),
        ("stages.*.region_sampler=iou_balanced", "learns from all of its queries"),
        ("stages.*.box_loss=balanced_l1", "set model.l1_weight and model.giou_weight"),
        ("stages.*.proposals=only", "looks at no proposals"),
        ("model.inference.adjust=adjust_logits", "softmax over the classes"),
    ],
)
def test_parts_of_regions_are_refused(override: str, says: str, smoke_set: GeneratedSet) -> None:
    recipe = load_recipe("deformable-detr", [*SETTINGS, override])
    statistics = AnnotationTable.from_coco(smoke_set.train).statistics()
    with pytest.raises(UsageError, match=says):
        build_model(recipe, recipe.stages[0], statistics, pretrained=False)


def test_published_settings_at_the_scale_of_lvis() -> None:
    recipe = load_recipe("deformable-detr", ["scale=lvis_v1"])
    stage = recipe.stages[0]
    assert (stage.schedule.epochs, stage.schedule.milestones, stage.schedule.batch_size) == (50, (0.8,), 16)
    assert (stage.optimiser.lr, stage.optimiser.weight_decay, stage.optimiser.clip_norm) == (2e-4, 1e-4, 0.1)
    assert stage.classification_loss.loss_weight == 3
    inference = recipe.model.inference
    assert (inference.score_threshold, inference.nms_threshold, inference.detections_per_image) == (0, 1, 300)


def train(folder: Path, out: str) -> None:
    recipe = load_recipe("deformable-detr", [*SETTINGS, *STILL, "stages.*.schedule.images=12"])
    api.train(recipe, train=folder / "train.json", images=folder / "images", out=folder / out)


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    make_shapes(tmp_path, preset="smoke")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    train(tmp_path, "one")

    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.allclose(one[name].double(), two[name].double(), 1e-3, 1e-5)]
    assert different == []

    def losses(out: str) -> dict[str, list[float]]:
        curves: dict[str, list[float]] = {}
        with (tmp_path / out / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                curves.setdefault(row["metric"], []).append(float(row["value"]))
        return curves

    one_run, two_runs = losses("one"), losses("two")
    names = [name for name in one_run if name.startswith("loss")]
    assert names
    for name in names:
        assert all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one_run[name], two_runs[name], strict=True)), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), "two")
