"""Every shipped recipe and study of Deformable DETR gets as far as the optimisers of all of its stages."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from longtail.build.model import build_model
from longtail.data import ClassStatistics
from longtail.schema import Recipe, StageSpec, load_recipe
from longtail.schema.study import load_study
from longtail.training.optimiser import parameter_groups
from longtail.training.study_plan import row_recipe
from longtail.training.trainable import freeze

PACKAGE = Path(str(resources.files("longtail")))
SCALES = sorted(
    path.stem for path in PACKAGE.glob("recipes/scales/*.yaml") if "\n  set-prediction:" in path.read_text("utf-8")
)
RECIPES = ["deformable-detr", *sorted(path.stem for path in PACKAGE.glob("recipes/stepwise*.yaml"))]
RECIPES.remove("stepwise-rcnn")
STUDIES = sorted(path.stem for path in PACKAGE.glob("studies/stepwise-*.yaml"))
SMALL = [
    "model.backbone=tiny32",
    "model.channels=64",
    "model.hidden=32",
    "model.heads=4",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=8",
]
POINTS = "transformer.reference_points.weight"
OFFSETS = "transformer.encoder.layers.0.self_attn.sampling_offsets.weight"
COUNTS = np.arange(1, 4)
STATISTICS = ClassStatistics(["a", "b", "c"], COUNTS, COUNTS, num_images=3, num_nonempty=3)


FOUND: dict[str, dict[str, float]] = {}


def rates(recipe: Recipe, stage: StageSpec) -> dict[str, float]:
    """The learning rate of every parameter that trains, relative to the stage's; made once for equal settings."""
    key = repr((recipe.model.type, recipe.model.two_stage, stage.classifier, stage.trainable, stage.optimiser))  # type: ignore[union-attr]
    if key not in FOUND:
        model = build_model(recipe, stage, STATISTICS, pretrained=False)
        freeze(model, stage.trainable)
        names = {value: name for name, value in model.named_parameters()}
        groups = parameter_groups(model, stage.optimiser)
        FOUND[key] = {names[own]: group["lr"] / stage.optimiser.lr for group in groups for own in group["params"]}
    return FOUND[key]


def test_scales_and_recipes_are_found() -> None:
    assert {"tiny", "small", "voc", "coco", "coco-2x", "lvis_v0.5", "lvis_v1", "lvis_v1-1x"} <= set(SCALES)
    assert {"deformable-detr", "stepwise", "stepwise-ft", "stepwise-kt", "stepwise-control"} <= set(RECIPES)
    assert len(STUDIES) >= 11


@pytest.mark.parametrize("scale", SCALES)
def test_every_stage_of_every_recipe_has_its_optimiser(scale: str) -> None:
    for name in RECIPES:
        recipe = load_recipe(name, [*SMALL, f"scale={scale}"])
        first, *others = [rates(recipe, stage) for stage in recipe.stages]
        assert first[OFFSETS] == pytest.approx(0.1)
        assert POINTS not in first
        assert all(OFFSETS not in own and set(own.values()) == {1.0} for own in others)


@pytest.mark.parametrize("study", STUDIES)
def test_every_row_of_every_study_has_its_optimisers(study: str) -> None:
    content = load_study(PACKAGE / "studies" / f"{study}.yaml")
    for row in content.rows:
        if row.recipe is not None:
            recipe = row_recipe(content, row, PACKAGE / "studies", 0, SMALL)
            assert recipe.model.type == "deformable_detr"
            assert all(rates(recipe, stage) for stage in recipe.stages)


@pytest.mark.parametrize("scale", [scale for scale in SCALES if scale not in ("tiny", "small")])
def test_learned_reference_points_have_a_tenth_of_the_rate(scale: str) -> None:
    recipe = load_recipe("deformable-detr", [*SMALL, f"scale={scale}", "model.two_stage=false"])
    assert rates(recipe, recipe.stages[0])[POINTS] == pytest.approx(0.1)
