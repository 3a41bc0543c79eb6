"""Which state goes on into the next stage, and which is derived anew."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longtail.build.model import build_model
from longtail.data import ClassStatistics
from longtail.losses.base import ClassificationLoss
from longtail.losses.mean_score import MeanScore
from longtail.models.remap import remap_classes
from longtail.replay.base import FeatureReplay
from longtail.schema import load_recipe, recipe_names
from longtail.training.assemble import load_previous, load_start
from longtail.training.carried import carried_state
from longtail.training.checkpoint import Identity, write_checkpoint

COUNTS = np.array([60, 20, 9, 4])
STATISTICS = ClassStatistics(list("abcd"), COUNTS, 2 * COUNTS, num_images=70, num_nonempty=70)
SEVERAL_STAGES = [name for name in recipe_names() if len(load_recipe(name).stages) > 1]
SMALL = ["scale=tiny", "model.backbone=tiny32", "model.neck.channels=8"]


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """Buffers of losses and replay parts, those that are not saved too."""
    return {
        f"{path}.{name}": buffer.clone()
        for path, module in model.named_modules()
        if isinstance(module, ClassificationLoss | FeatureReplay | MeanScore)
        for name, buffer in module.named_buffers()
    }


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("name", SEVERAL_STAGES)
def test_every_stage_has_the_constants_of_its_own_options(name: str) -> None:
    recipe = load_recipe(name, [] if name.startswith("cifar") else ["scale=tiny"])
    models = [build_model(recipe, spec, STATISTICS, pretrained=False) for spec in recipe.stages]
    for index in range(1, len(models)):
        fresh = own_state(models[index])
        spec, earlier = recipe.stages[index], recipe.stages[index - 1]
        state = carried_state(models[index], models[index - 1].state_dict(), spec, earlier, same_data=True)
        load_previous(models[index], state, spec, origin="the previous stage")
        assert_equal(own_state(models[index]), fresh)


def test_deferred_weights_act_in_the_second_stage() -> None:
    recipe = load_recipe("ldam-drw", SMALL)
    first, second = (build_model(recipe, spec, STATISTICS, pretrained=False) for spec in recipe.stages)
    state = carried_state(second, first.state_dict(), recipe.stages[1], recipe.stages[0], same_data=True)
    load_previous(second, state, recipe.stages[1], origin="the previous stage")
    weight = second.box.classification_loss.row_weight[:-1]
    assert (weight.diff() > 0).all()


@pytest.mark.parametrize(
    ("replay", "later"),
    [
        ("[{type: object_memory, max_images: 30}]", "[{type: object_memory, max_images: 8}]"),
        ("[{type: object_memory, max_images: 8}]", "[{type: object_memory, max_images: 30}]"),
        ("[{type: object_memory, classes: [a]}]", "[{type: object_memory, classes: [d]}]"),
        ("[{type: virtual_features, scale: 1}]", "[{type: virtual_features, scale: 5}]"),
        ("[{type: mean_score, background: 0.01}]", "[{type: mean_score, background: 0.1}]"),
    ],
)
def test_replay_goes_on_only_with_the_same_options(replay: str, later: str) -> None:
    old = load_recipe("rfs", [*SMALL, f"stages.*.replay={replay}"]).stages[0]
    for options in (replay, later):
        recipe = load_recipe("rfs", [*SMALL, f"stages.*.replay={options}"])
        model = build_model(recipe, recipe.stages[0], STATISTICS, pretrained=False)
        fresh = own_state(model)
        used = build_model(load_recipe("rfs", [*SMALL, f"stages.*.replay={replay}"]), old, STATISTICS, pretrained=False)
        for name, value in used.state_dict().items():
            if ".replay." in name and value.is_floating_point():
                value.add_(0.25)
        state = carried_state(model, used.state_dict(), recipe.stages[0], old, same_data=True)
        load_previous(model, state, recipe.stages[0], origin="the previous stage")
        if options == later:
            assert_equal(own_state(model), fresh)
        else:
            assert_equal(own_state(model), own_state(used))


def test_a_loss_goes_on_counting_if_it_stays() -> None:
    recipe = load_recipe("eqlv2", SMALL)
    spec = recipe.stages[0]
    first, second = (build_model(recipe, spec, STATISTICS, pretrained=False) for _ in range(2))
    first.box.classification_loss.gradients.positive.fill_(3)
    state = first.state_dict()
    other = load_recipe("efl", ["scale=tiny"]).stages[0]
    for earlier, same_data, carried in ((spec, True, True), (other, True, False), (spec, False, False)):
        kept = carried_state(second, state, spec, earlier, same_data=same_data)
        assert ("box.classification_loss.gradients.positive" in kept) == carried
        assert kept["box.classifier.weight"] is state["box.classifier.weight"]


def test_a_run_on_other_counts_of_the_same_classes_brings_its_weights_alone(tmp_path: Path) -> None:
    changes = ["stages.*.replay=[{type: object_memory, max_images: 30}]", "stages.*.classification_loss=logit_adjusted"]
    recipe = load_recipe("rfs", [*SMALL, *changes])
    spec = recipe.stages[0]
    theirs = build_model(recipe, spec, STATISTICS, pretrained=False)
    write_checkpoint(tmp_path / "theirs", theirs, Identity(recipe, 0, [1, 2, 3, 4], STATISTICS))
    reversed_counts = replace(STATISTICS, image_counts=COUNTS[::-1].copy(), instance_counts=2 * COUNTS[::-1])
    model = build_model(recipe, spec, reversed_counts, pretrained=False)
    fresh = own_state(model)
    load_start(model, tmp_path / "theirs", spec, reversed_counts)
    assert_equal(own_state(model), fresh)
    assert torch.equal(model.box.classifier.weight, theirs.box.classifier.weight)


def test_scores_of_other_classes_are_dropped() -> None:
    recipe = load_recipe("rfs", [*SMALL, "stages.*.replay=[mean_score]"])
    model = build_model(recipe, recipe.stages[0], STATISTICS, pretrained=False)
    kept, report = remap_classes(model, model.state_dict(), source_classes=list("abcd"), target_classes=list("dcba"))
    assert "box.replay.0.value" in report.state_dropped
    assert "box.replay.0.value" not in kept
