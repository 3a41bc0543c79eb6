"""LOCE's recipes: what they say, and what of the model trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longtail.build.model import build_model
from longtail.build.replay import describe_replay, mean_score, replay_parts
from longtail.data import ClassStatistics
from longtail.losses import EquilibriumLoss, MeanScore
from longtail.models.mask_predictors import NormalisedMaskPredictor
from longtail.replay import FeatureMemory
from longtail.schema import UsageError, load_recipe
from longtail.schema import passes as pass_specs
from longtail.schema import replay as replay_specs
from longtail.training.trainable import freeze

STATISTICS = ClassStatistics(
    names=["cat", "dog", "emu", "fox"],
    image_counts=np.array([200, 30, 0, 31]),
    instance_counts=np.array([300, 40, 0, 50]),
    num_images=220,
    num_nonempty=220,
)
NAMES = ["loce-control", "loce-ebl", "loce-mfs", "loce"]
SMALL = ["scale=tiny", "model.backbone=tiny32"]


def model(name: str, *changes: str) -> Any:
    recipe = load_recipe(name, [*SMALL, *changes])
    return build_model(recipe, recipe.stages[1], STATISTICS, pretrained=False)


@pytest.mark.parametrize("scale", ["lvis_v1", "lvis_v0.5"])
@pytest.mark.parametrize("name", NAMES)
def test_published_settings(name: str, scale: str) -> None:
    recipe = load_recipe(name, scale=scale)
    first, second = recipe.stages
    assert (first.schedule.epochs, second.schedule.epochs) == (24, 6)
    assert first.schedule.milestones == pytest.approx((16 / 24, 22 / 24))
    assert second.schedule.milestones == pytest.approx((3 / 6, 5 / 6))
    for stage in recipe.stages:
        assert stage.schedule.warmup_images == 500 * 16
        assert (stage.optimiser.lr, stage.sampler.type) == (0.02, "uniform")
    assert (first.classification_loss.type, first.replay) == ("softmax", ())
    assert second.classification_loss.type == ("equilibrium" if name in ("loce", "loce-ebl") else "softmax")
    memory = [replay_specs.FeatureMemory(classes=8, count=4, capacity=80)] if name in ("loce", "loce-mfs") else []
    assert list(second.replay) == [*memory, replay_specs.MeanScores(alpha=0.9, background=0.01, initial=0.01)]
    filling = (pass_specs.UpdateState(per_class=5),)
    assert second.passes_before == (() if name == "loce-control" else filling)
    assert recipe.model.masks.predictor == "normalised"


def test_tiny_settings() -> None:
    first, second = load_recipe("loce", scale="tiny").stages
    assert (first.schedule.images, second.schedule.images, first.schedule.batch_size) == (1440, 480, 4)
    assert (first.optimiser.lr, second.optimiser.lr) == (0.001, 0.003)
    assert first.classification_loss.loss_weight == second.classification_loss.loss_weight == 2.5
    assert load_recipe("loce-mfs", scale="tiny").stages[1].classification_loss.loss_weight == 2.5
    assert (second.replay[0].classes, second.replay[0].count, second.replay[0].capacity) == (4, 2, 48)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"])
def test_exactly_the_named_layers_train(kind: str) -> None:
    made = model("loce", f"model={kind}")
    trained = set(freeze(made, load_recipe("loce", SMALL).stages[1].trainable))
    assert trained == {
        name
        for name, _ in made.named_parameters()
        if name.startswith(("rpn.", "mask.")) or ".classifier." in name or ".regressor." in name
    }
    assert {name.split(".")[0] for name in trained} == {"rpn", "box"} | ({"mask"} if "mask" in kind else set())


def test_mask_predictor_is_normalised() -> None:
    assert any(isinstance(part, NormalisedMaskPredictor) for part in model("loce", "model=mask_rcnn").modules())


def test_loss_and_memory_share_the_scores() -> None:
    box = model("loce").box
    memory, scores = box.replay
    assert isinstance(memory, FeatureMemory)
    assert isinstance(box.classification_loss, EquilibriumLoss)
    assert memory.guide is scores
    assert box.classification_loss.guide is scores
    for stage in model("loce", "model=cascade_rcnn").box:
        assert stage.replay[0].guide is stage.replay[1]
        assert stage.classification_loss.guide is stage.replay[1]


def test_scores_are_kept_where_something_needs_them() -> None:
    stage = load_recipe("baseline", [*SMALL, "stages.*.classification_loss=equilibrium"]).stages[0]
    assert isinstance(mean_score(stage, STATISTICS), MeanScore)
    assert len(replay_parts(stage.replay, STATISTICS, mean_score(stage, STATISTICS), feature_size=8)) == 1
    assert mean_score(load_recipe("baseline", SMALL).stages[0], STATISTICS) is None
    counts = "stages.*.classification_loss={type: equilibrium, guide: instances}"
    assert mean_score(load_recipe("baseline", [*SMALL, counts]).stages[0], STATISTICS) is None
    box = model("loce", "stages.equilibrium.classification_loss=objectness_softmax").box
    assert box.replay[1].scores == box.classification_loss.scores


def test_guided_by_counts() -> None:
    box = model("loce", "stages.equilibrium.classification_loss.guide=instances",
                "stages.equilibrium.replay=[{type: feature_memory, guide: instances}]").box  # fmt: skip
    assert box.classification_loss.prior.tolist() == [300, 40, 1, 50, 1]
    assert box.replay[0].class_counts.tolist() == [300, 40, 0, 50]
    assert len(box.replay) == 1


def test_options_arrive() -> None:
    changed = (
        "stages.equilibrium.replay=[{type: feature_memory, classes: 2, count: 3, capacity: 7, arrivals: random, "
        "half: true, storage: cpu, lazy: false}, {type: mean_score, alpha: 0.8, background: 0.1, initial: 0.2}]"
    )
    memory, scores = model("loce", changed).box.replay
    assert (memory.classes, memory.count, memory.capacity, memory.arrivals) == (2, 3, 7, "random")
    assert (memory.bank.storage, memory.bank.lazy, str(memory.bank.fields["features"])) == (
        "cpu",
        False,
        "torch.float16",
    )
    assert (scores.alpha, round(scores.value[-1].item(), 6), round(scores.value[0].item(), 6)) == (0.8, 0.1, 0.2)


def test_scores_listed_twice_are_refused() -> None:
    with pytest.raises(UsageError, match="lists mean_score 2 times; give it once"):
        model("loce", "stages.equilibrium.replay=[mean_score, mean_score]")


def test_says_what_acts() -> None:
    assert describe_replay(load_recipe("loce", scale="tiny").stages[1].replay, STATISTICS) == [
        "replay: feature_memory adds 2 rows of each of 4 classes drawn by the inverse of their mean scores, from 48 "
        "rows of every class",
        "replay: mean_score follows the scores of 4 classes with alpha 0.9, background 0.01",
    ]


def test_pictures_have_no_regions_to_score() -> None:
    recipe = load_recipe("baseline", ["model=image_classifier", "stages.*.classification_loss=equilibrium"])
    with pytest.raises(UsageError, match="guide: instances"):
        build_model(recipe, recipe.stages[0], STATISTICS, pretrained=False)
