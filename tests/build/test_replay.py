"""Replay parts from the schema."""

from __future__ import annotations

import numpy as np
import pytest

from longtail.build.replay import describe_replay, replay_parts, targeted
from longtail.data import ClassStatistics
from longtail.replay import ObjectMemory
from longtail.schema import UsageError, load_recipe, parts

STATISTICS = ClassStatistics(
    names=["cat", "dog", "emu", "fox"],
    image_counts=np.array([200, 30, 0, 31]),
    instance_counts=np.array([300, 40, 0, 50]),
    num_images=220,
    num_nonempty=220,
)


def test_targeted_by_images_or_by_name() -> None:
    assert targeted(parts.ObjectMemory(), STATISTICS).tolist() == [False, True, False, False]
    assert targeted(parts.ObjectMemory(max_images=31), STATISTICS).tolist() == [False, True, False, True]
    assert targeted(parts.ObjectMemory(classes=("fox", "cat")), STATISTICS).tolist() == [True, False, False, True]


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no class 'dgo'; did you mean 'dog'"):
        replay_parts([parts.ObjectMemory(classes=("cat", "dgo"))], STATISTICS, feature_size=8)


def test_every_option_arrives() -> None:
    spec = parts.ObjectMemory(source="bank", count=3, capacity=7, draw="random", storage="cpu", lazy=False)
    part = replay_parts([spec], STATISTICS, feature_size=8)[0]
    assert isinstance(part, ObjectMemory)
    assert (part.count, part.capacity, part.draw, part.source) == (3, 7, "random", "bank")
    assert part.bank is not None
    assert (part.bank.storage, part.bank.lazy, part.bank.slots.shape) == ("cpu", False, (1, 7))
    assert replay_parts([parts.ObjectMemory(source="current")], STATISTICS, feature_size=8)[0].bank is None


def test_says_how_many_classes_are_targeted() -> None:
    said = describe_replay([parts.ObjectMemory(max_images=31), parts.ObjectMemory(classes=("cat",))], STATISTICS)
    assert said == [
        "replay: object_memory acts on 2 of 4 classes (at most 31 images): 0 rare, 2 common, 0 frequent",
        "replay: object_memory acts on 1 of 4 classes (named): 0 rare, 0 common, 1 frequent",
    ]


@pytest.mark.parametrize(
    ("name", "sampler", "loss"),
    [("ocs", "uniform", "softmax"), ("rio", "repeat_factor", "softmax"), ("rio-eql", "repeat_factor", "eql")],
)
def test_published_settings(name: str, sampler: str, loss: str) -> None:
    recipe = load_recipe(name, scale="lvis_v0.5")
    stage = recipe.stages[0]
    assert stage.replay == (parts.ObjectMemory(count=20, capacity=60, max_images=30),)
    assert (stage.sampler.type, stage.classification_loss.type) == (sampler, loss)
    assert recipe.model.classifier == parts.Cosine(scale=48.0)
    tiny = load_recipe(name, scale="tiny").stages[0].replay[0]
    assert (tiny.count, tiny.capacity) == (4, 20)
