"""Replay parts from the schema."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longtail.build.replay import describe_replay, replay_parts, targeted
from longtail.data import ClassStatistics
from longtail.replay import ObjectMemory, VirtualFeatures
from longtail.replay.virtual_features import initial_probabilities
from longtail.schema import UsageError, load_recipe
from longtail.schema import classifiers as classifier_specs
from longtail.schema import replay as replay_specs
from longtail.schema.stage import Schedule

STATISTICS = ClassStatistics(
    names=["cat", "dog", "emu", "fox"],
    image_counts=np.array([200, 30, 0, 31]),
    instance_counts=np.array([300, 40, 0, 50]),
    num_images=220,
    num_nonempty=220,
)


def test_targeted_by_images_or_by_name() -> None:
    assert targeted(replay_specs.ObjectMemory(), STATISTICS).tolist() == [False, True, False, False]
    assert targeted(replay_specs.ObjectMemory(max_images=31), STATISTICS).tolist() == [False, True, False, True]
    assert targeted(replay_specs.ObjectMemory(classes=("fox", "cat")), STATISTICS).tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no class 'dgo'; did you mean 'dog'"):
        replay_parts([replay_specs.ObjectMemory(classes=("cat", "dgo"))], STATISTICS, feature_size=8)


def test_every_option_arrives() -> None:
    spec = replay_specs.ObjectMemory(source="bank", count=3, capacity=7, draw="random", storage="cpu", lazy=False)
    part = replay_parts([spec], STATISTICS, feature_size=8)[0]
    assert isinstance(part, ObjectMemory)
    assert (part.count, part.capacity, part.draw, part.source) == (3, 7, "random", "bank")
    assert part.bank is not None
    assert (part.bank.storage, part.bank.lazy, part.bank.slots.shape) == ("cpu", False, (1, 7))
    assert replay_parts([replay_specs.ObjectMemory(source="current")], STATISTICS, feature_size=8)[0].bank is None


def test_says_how_many_classes_are_targeted() -> None:
    specs = [
        replay_specs.ObjectMemory(max_images=31),
        replay_specs.ObjectMemory(classes=("cat",), draw="random"),
        replay_specs.ObjectMemory(classes=("cat",), source="current", count=5),
        replay_specs.InterpolatedFeatures(classes=("cat",)),
    ]
    named = "acts on 1 of 4 classes (named): 0 rare, 0 common, 1 frequent"
    assert describe_replay(specs, STATISTICS) == [
        "replay: object_memory acts on 2 of 4 classes (at most 31 images): 0 rare, 2 common, 0 frequent; replays at "
        "most 20 rows of each in the step, the newest of its last 60",
        f"replay: object_memory {named}; replays at most 20 rows of each in the step, drawn of its last 60",
        f"replay: object_memory {named}; repeats 5 rows of each in the step",
        f"replay: interpolated_features {named}",
    ]


@pytest.mark.parametrize(
    ("name", "sampler", "loss"),
    [("ocs", "uniform", "softmax"), ("rio", "repeat_factor", "softmax"), ("rio-eql", "repeat_factor", "eql")],
)
def test_published_settings(name: str, sampler: str, loss: str) -> None:
    recipe = load_recipe(name, scale="lvis_v0.5")
    stage = recipe.stages[0]
    assert stage.replay == (replay_specs.ObjectMemory(count=20, capacity=60, max_images=30),)
    assert (stage.sampler.type, stage.classification_loss.type) == (sampler, loss)
    assert recipe.model.classifier == classifier_specs.Cosine(scale=48.0)
    tiny = load_recipe(name, scale="tiny").stages[0].replay[0]
    assert (tiny.count, tiny.capacity) == (4, 20)


def test_virtual_features_get_every_option() -> None:
    spec = replay_specs.VirtualFeatures(
        scale=2,
        power=0.5,
        loss_weight=0.3,
        warmup_epochs=2,
        momentum=0.2,
        moment="std",
        single_sample="skip",
        raise_factor=1.2,
        lower_factor=0.8,
        grouping="frequency",
        eps=0.7,
        min_samples=3,
        noise="single",
        norm="total",
        sync=False,
    )
    schedule = Schedule(epochs=1, batch_size=8, accumulate=2)
    part = replay_parts([spec], STATISTICS, feature_size=6, schedule=schedule)[0]
    assert isinstance(part, VirtualFeatures)
    expected = initial_probabilities(torch.tensor([300, 40, 0, 50]), scale=2, power=0.5)
    assert torch.equal(part.prob, expected)
    assert part.warmup_steps == 110, "2 epochs of 220 images, 4 in a forward pass"
    assert (part.loss_weight, part.raise_factor, part.lower_factor) == (0.3, 1.2, 0.8)
    assert (part.grouping, part.eps, part.min_samples, part.noise) == ("frequency", 0.7, 3, "single")
    assert (part.norm, part.sync) == ("total", False)
    assert part.groups.tolist() == [2, 1, -1, 1], "by images: 200, 30, 0, 31"
    moments = part.moments
    assert (moments.momentum, moments.moment, moments.single_sample, moments.sync) == (0.2, "std", "skip", False)
    assert moments.mean.shape == (4, 6)
    by_images = replay_specs.VirtualFeatures(warmup_images=30)
    assert replay_parts([by_images], STATISTICS, feature_size=6, schedule=schedule)[0].warmup_steps == 8


def test_says_how_many_virtual_features_are_drawn() -> None:
    static = replay_specs.VirtualFeatures(raise_factor=1, lower_factor=1, warmup_images=30, stages=(0, 2))
    specs = [replay_specs.VirtualFeatures(scale=2), static]
    assert describe_replay(specs, STATISTICS) == [
        "replay: virtual_features draws 1.97 rows per step at first (0 % rare, 93 % common, 7 % frequent), adapted by "
        "fisher_dbscan, after 220 images for the moments alone",
        "replay: virtual_features draws 1 rows per step at first (0 % rare, 93 % common, 7 % frequent), static, after "
        "30 images for the moments alone, in stages [0, 2] of the cascade",
    ]
