"""Recipes in words."""

from __future__ import annotations

import pytest

from longtail.reports.recipes import explain_recipe, length_text, list_recipes
from longtail.schema import load_recipe, recipe_names
from longtail.schema.stage import Schedule


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_all_seams(name: str) -> None:
    text, stages = explain_recipe(load_recipe(name)), load_recipe(name).stages
    assert text.count("  image sampler ") == len(stages)
    whole = [stage for stage in stages if stage.proposals != "only"]
    for seam in ("region sampler", "classifier", "classification loss", "box loss"):
        assert text.count(f"  {seam} ") == len(whole)
    assert text.count("  feature replay ") == sum(max(1, len(stage.replay)) for stage in whole)


def test_what_becomes_of_proposals_and_which_head_is_named() -> None:
    text = explain_recipe(load_recipe("fast-rcnn", ["model.regions.head=conv"]))
    assert "proposals            the network that makes them trains alone" in text
    assert "proposals            kept ones are read" in text
    assert "head      conv (layers 4, channels 256)" in text
    assert "proposals" not in explain_recipe(load_recipe("baseline"))


def test_replay_and_frozen_parts_are_named() -> None:
    changes = [
        "stages.end-to-end.replay=[{type: object_memory, count: 5}]",
        "stages.end-to-end.trainable.freeze=[backbone]",
    ]
    text = explain_recipe(load_recipe("rfs", changes))
    assert "object_memory (max_images 30, source bank, count 5" in text
    assert "everything except backbone" in text


def test_augmentation_that_is_on_is_named() -> None:
    text = explain_recipe(load_recipe("rfs", ["images.copy_paste=class_aware", "images.resize=scale_jitter"]))
    assert "pictures  class_aware (probability 0.5, max_objects 3, power 0.5" in text
    assert "pictures  scale_jitter (size [1024, 1024], scale [0.1, 2.0]" in text
    assert explain_recipe(load_recipe("rfs")).count("pictures  ") == 1


def test_the_list_shows_sources() -> None:
    text = list_recipes([load_recipe(name) for name in recipe_names()])
    assert "Gupta et al., LVIS, CVPR 2019, section 4" in text
    assert list_recipes([]) == ""


def test_lengths() -> None:
    assert length_text(Schedule(epochs=12)) == "12 epochs in batches of 16, steps decay"
    assert (
        length_text(Schedule(images=1920, batch_size=4, decay="cosine")) == "1920 images in batches of 4, cosine decay"
    )
