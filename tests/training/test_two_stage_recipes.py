"""What the second stages of shipped recipes train, and that controls differ in the method alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longtail.data.scenes import GeneratedSet
from longtail.schema import Recipe, load_recipe
from longtail.training.api import RunResult, evaluate, train

FAST = [
    "scale=tiny",
    "model.backbone=tiny32",
    "model.neck.channels=16",
    "model.regions.channels=32",
    "images.short_sides=[64]",
    "images.test_short_side=64",
    "stages.*.schedule.images=24",
    "stages.*.schedule.warmup_images=4",
]
NORMS = ("running_mean", "running_var", "num_batches_tracked")
TRAINED = {
    "acsl": {"box.classifier.weight", "box.classifier.bias"},
    "bags": {"box.classifier.weight", "box.classifier.bias"},
    "balanced-softmax": {"box.classifier.weight", "box.classifier.bias"},
    "crt": {"box.classifier.weight", "box.classifier.bias"},
    "lws": {"box.classifier.scale"},
    "rfs-ft": {"box.classifier.direction", "box.regressor.weight", "box.regressor.bias"},
}


def run(made: GeneratedSet, out: Path, recipe: Recipe) -> RunResult:
    return train(recipe, train=made.train, images=made.images, val=made.val, out=out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("name", "trained"), TRAINED.items())
def test_the_second_stage_moves_only_its_layers(
    name: str, trained: set[str], smoke_set: GeneratedSet, tmp_path: Path
) -> None:
    run(smoke_set, tmp_path / "run", load_recipe(name, FAST))
    first = weights(tmp_path / "run" / "stages" / "1-end-to-end" / "end")
    last = weights(tmp_path / "run" / "checkpoints" / "last")
    losses = "box.classification_loss."
    changed = {
        key
        for key, value in last.items()
        if not key.endswith(NORMS)
        and not key.startswith(losses)
        and (key not in first or first[key].shape != value.shape or not torch.equal(first[key], value))
    }
    assert changed == trained


def test_lws_keeps_the_first_stages_directions(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    run(smoke_set, tmp_path / "run", load_recipe("lws", FAST))
    last = weights(tmp_path / "run" / "checkpoints" / "last")
    scale = last["box.classifier.scale"]
    assert scale.shape == (14,), "12 classes, foreground, background"
    assert not torch.equal(scale, torch.ones(14))
    assert (scale - 1).abs().max() < 0.1


@pytest.mark.parametrize("scale", ["tiny", "lvis_v1"])
@pytest.mark.parametrize(
    ("name", "control", "differs"),
    [
        ("acsl", "acsl-control", {"classification_loss"}),
        ("crt", "crt-control", {"sampler"}),
        ("bags", "crt-control", {"classification_loss"}),
        ("lws", "crt-control", {"sampler", "classifier", "trainable"}),
        ("balanced-softmax", "balanced-softmax-control", {"classification_loss"}),
        ("rfs-ft", "rfs-ft-control", {"classifier", "trainable"}),
    ],
)
def test_a_control_has_the_same_first_stage_and_length(name: str, control: str, differs: set[str], scale: str) -> None:
    own, other = (load_recipe(which, [f"scale={scale}"]) for which in (name, control))
    assert own.stages[0] == other.stages[0]
    assert own.model == other.model
    second, plain = (recipe.stages[1].model_dump() for recipe in (own, other))
    assert {key for key in second if second[key] != plain[key]} == differs
    first = own.stages[0].schedule
    assert (second["schedule"]["images"], second["schedule"]["epochs"]) == (
        None if first.images is None else first.images // 2,
        None if first.epochs is None else first.epochs / 2,
    )


@pytest.mark.parametrize("name", ["ldam-drw", "cifar-lt-ldam-drw"])
def test_the_control_of_margins_has_the_same_stages_and_the_plain_loss(name: str) -> None:
    own, other = load_recipe(name), load_recipe(f"{name}-control")
    plain = load_recipe("cifar-lt-baseline" if name.startswith("cifar") else "baseline")
    assert other.model == plain.model
    assert other.images == own.images
    for stage, control in zip(own.stages, other.stages, strict=True):
        first, second = stage.model_dump(), control.model_dump()
        assert {key for key in first if first[key] != second[key]} == {"classification_loss"}
        assert control.classification_loss == plain.stages[0].classification_loss


def test_scores_can_be_adjusted_in_the_recipe_or_afterwards(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    changes = ["stages.*.schedule.images=120", "stages.*.optimiser.lr=0.003"]
    adjust = "model.inference.adjust={type: tau_normalise, tau: 3}"
    run(smoke_set, tmp_path / "plain", load_recipe("baseline", [*FAST, *changes]))
    done = run(smoke_set, tmp_path / "adjusted", load_recipe("baseline", [*FAST, *changes, adjust]))
    plain, adjusted = (evaluate(tmp_path / name)["auto"]["bbox"] for name in ("plain", "adjusted"))
    assert done.results["bbox"].metrics == adjusted.metrics, "adjusted by the weights as they are after training"
    before, after = (weights(tmp_path / name / "checkpoints" / "last") for name in ("plain", "adjusted"))
    assert all(torch.equal(before[key], after[key]) for key in before), "training knows nothing of it"
    afterwards = evaluate(tmp_path / "plain", overrides=[adjust], split="adjusted")["auto"]["bbox"]
    assert afterwards.metrics == adjusted.metrics
    assert afterwards.metrics != plain.metrics
    assert afterwards.settings["overrides"] == [adjust]
    again = evaluate(tmp_path / "adjusted", overrides=["model.inference.adjust=null"], split="plain")["auto"]["bbox"]
    assert again.metrics == plain.metrics
