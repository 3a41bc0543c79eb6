"""Cascades in whole runs: second stages of shipped recipes, running state per stage, cut off and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longtail.build.model import build_model
from longtail.data import AnnotationTable
from longtail.data.scenes import GeneratedSet
from longtail.schema import Recipe, UsageError, load_recipe
from longtail.training import loop
from longtail.training.api import evaluate, predict, resume, train
from longtail.training.trainable import freeze

FAST = [
    "scale=tiny",
    "model=cascade_rcnn",
    "model.backbone=tiny32",
    "model.neck.channels=16",
    "model.regions.channels=32",
    "model.masks.channels=[8]",
    "images.short_sides=[64]",
    "images.test_short_side=64",
    "groups.edges=[5, 25]",
    "model.inference.detections_per_image=10",
    "stages.*.schedule.images=24",
    "stages.*.schedule.warmup_images=4",
]
NORMS = ("running_mean", "running_var", "num_batches_tracked")


def run(made: GeneratedSet, out: Path, recipe: Recipe):  # type: ignore[no-untyped-def]
    return train(recipe, train=made.train, images=made.images, val=made.val, out=out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}


def test_second_stages_train_their_layers_in_every_stage(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    run(smoke_set, tmp_path / "run", load_recipe("crt", FAST))
    first = weights(tmp_path / "run" / "stages" / "1-end-to-end" / "end")
    last = weights(tmp_path / "run" / "checkpoints" / "last")
    changed = {key for key, value in last.items() if not key.endswith(NORMS) and not torch.equal(first[key], value)}
    layers = ("classifier.weight", "classifier.bias")
    assert changed == {f"box.{number}.{layer}" for number in range(3) for layer in layers}
    names = {line.split(",")[3] for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]}
    assert {f"{name}_{n}" for name in ("loss_classifier", "loss_box_reg") for n in range(3)} <= names
    assert not any(name.startswith("loss_mask") for name in names), "model=cascade_rcnn has no masks"


class Killed(Exception):
    """Stands for the end of the process."""


def test_cut_off_and_resumed_with_the_state_of_every_stage(
    smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("eqlv2", [*FAST, "model=cascade_mask_rcnn", "stages.*.replay=[{type: object_memory}]"])
    whole = run(smoke_set, tmp_path / "whole", recipe)
    assert set(whole.results) == {"bbox", "segm"}
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
    one, other = (weights(tmp_path / name / "checkpoints" / "last") for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    state = [name for name in one if ".classification_loss." in name]
    per_stage = [{name.split(".", 2)[2]: one[name] for name in state if name.startswith(f"box.{n}.")} for n in range(3)]
    assert per_stage[0].keys() == per_stage[2].keys() != set()
    assert any(not torch.equal(value, per_stage[2][name]) for name, value in per_stage[0].items())

    again = evaluate(tmp_path / "cut")["auto"]
    assert again["segm"].metrics == whole.results["segm"].metrics
    picture = sorted(path for path in smoke_set.images.rglob("*") if path.is_file())[0]
    assert predict(tmp_path / "cut", picture, out=tmp_path / "found", score_threshold=0.0).is_file()


@pytest.mark.parametrize(("name", "layer"), [("lws", "classifier.scale"), ("rfs-ft", "regressor.weight")])
def test_patterns_of_recipes_name_layers_of_every_stage(name: str, layer: str, smoke_set: GeneratedSet) -> None:
    statistics = AnnotationTable.from_coco(smoke_set.train).statistics(edges=(5, 25), count="images")
    recipe = load_recipe(name, FAST)
    model = build_model(recipe, recipe.stages[-1], statistics, pretrained=False)
    trained = freeze(model, recipe.stages[-1].trainable)
    assert {f"box.{number}.{layer}" for number in range(3)} <= set(trained)
    assert all(found.startswith("box.") for found in trained)
    only = freeze(model, recipe.stages[-1].trainable.model_copy(update={"only": (f"box.2.{layer}",)}))
    assert only == [f"box.2.{layer}"]
    with pytest.raises(UsageError, match="matches no parameter"):
        freeze(model, recipe.stages[-1].trainable.model_copy(update={"only": (f"box.3.{layer}",)}))


def test_what_a_cascade_has_not_is_refused() -> None:
    with pytest.raises(UsageError, match="matcher"):
        load_recipe("baseline", [*FAST, "model.regions.matcher.high=0.6"])
    with pytest.raises(UsageError, match="class_agnostic"):
        load_recipe("baseline", [*FAST, "model.regions.class_agnostic=false"])
