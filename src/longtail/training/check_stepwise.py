"""What chosen objects and distillation need of a stage and its model, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from longtail.schema import Recipe, UsageError
from longtail.schema.stage import StageSpec
from longtail.schema.stepwise import ClassificationDistillationSpec, MaskedFeatures, RegionFeatures

QUERIES, REGIONS = ("deformable_detr",), ("faster_rcnn", "mask_rcnn")


def classified_rows(recipe: Recipe) -> Literal["query", "region"]:
    """What the recipe's model classifies, as far as distillation goes."""
    return "query" if recipe.model.type in QUERIES else "region"


def check_stepwise(recipe: Recipe, stage: StageSpec, trained: Sequence[str]) -> None:
    """Refuses what does not go together.

    Args:
        recipe: its model.
        stage: one of its stages.
        trained: names of the parameters that train in it.

    Raises:
        UsageError: says what does.
    """
    kind, name = recipe.model.type, f"stage {stage.name!r}"
    if stage.passes_after and (kind not in QUERIES + REGIONS or stage.proposals == "only"):
        raise UsageError(
            f"{name} scores training objects, which works with {', '.join(QUERIES + REGIONS)}, not with {kind} "
            f"(proposals={stage.proposals})"
        )
    if stage.exemplars is not None and stage.exemplars.unselected == "ignore":
        if kind not in QUERIES:
            raise UsageError(
                f"{name} ignores objects that are not chosen, which works with {', '.join(QUERIES)}; with {kind} say "
                "exemplars.unselected=drop"
            )
        if recipe.images.copy_paste.type != "none":
            raise UsageError(f"{name} ignores objects that are not chosen; set images.copy_paste=none")
    for loss in stage.auxiliary_losses:
        if isinstance(loss, MaskedFeatures):
            continue
        if isinstance(loss, RegionFeatures) and kind not in REGIONS:
            raise UsageError(f"{name}: region_features compares regions of {', '.join(REGIONS)}, not of {kind}")
        if kind not in QUERIES + REGIONS:
            raise UsageError(
                f"{name}: {loss.type} compares queries of {', '.join(QUERIES)} or regions of {', '.join(REGIONS)}, "
                f"and there are none in {kind}"
            )
        if kind in REGIONS:
            check_regions(stage, loss, trained)


def check_regions(
    stage: StageSpec, loss: RegionFeatures | ClassificationDistillationSpec, trained: Sequence[str]
) -> None:
    """Refuses distillation on regions that would not be the teacher's.

    Raises:
        UsageError: something that the regions depend on trains, or the loss asks for queries.
    """
    moving = [name for name in trained if name.startswith(("backbone.", "rpn."))]
    if moving:
        raise UsageError(
            f"stage {stage.name!r}: {loss.type} compares the same regions of student and teacher, but what proposes "
            f"them trains ({moving[0]}); freeze backbone and rpn, as with trainable.only=[box.head.fc7, box.classifier]"
        )
    if isinstance(loss, ClassificationDistillationSpec) and loss.align == "matched":
        raise UsageError(f"stage {stage.name!r}: regions are the same for both; say align=index")
    if isinstance(loss, ClassificationDistillationSpec) and stage.classification_loss.type == "group_softmax":
        raise UsageError(
            f"stage {stage.name!r}: {loss.type} compares one logit per class, but groups of classes have logits of "
            "their own; use another classification loss, or region_features alone"
        )
