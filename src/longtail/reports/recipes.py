"""What recipes are, in words: the list, and one recipe seam by seam."""

from __future__ import annotations

from collections.abc import Sequence

from longtail.schema import Recipe
from longtail.schema.parts import Part
from longtail.schema.stage import Schedule, StageSpec

PROPOSALS = {
    "only": "the network that makes them trains alone, then those of all pictures are kept",
    "cached": "kept ones are read",
}


def list_recipes(recipes: Sequence[Recipe]) -> str:
    """One recipe per line with its summary, and below it where it comes from."""
    width = max((len(recipe.name) for recipe in recipes), default=0)
    lines = []
    for recipe in recipes:
        lines.append(f"{recipe.name:<{width}}  {recipe.summary}")
        if recipe.paper:
            lines.append(f"{'':<{width}}  {recipe.paper}")
    return "\n".join(lines)


def explain_recipe(recipe: Recipe) -> str:
    """Model, data and every stage with what plugs into its seams."""
    model = recipe.model
    lines = [
        f"{recipe.name}: {recipe.summary}",
        f"source    {recipe.paper or 'none given'}",
        f"scale     {recipe.scale}",
        f"model     {model.type}",
        f"backbone  {part_text(model.backbone)}",
        f"pictures  shorter side {sides(recipe.images.short_sides)}, longer at most {recipe.images.long_side} pixels",
        *(f"pictures  {part_text(part)}" for part in augmentations(recipe)),
        f"groups    {groups_text(recipe)}",
    ]
    lines += [f"{word:<9} {part_text(part)}" for word, part in model.peculiarities()]
    for stage in recipe.stages:
        lines += ["", *explain_stage(recipe, stage)]
    return "\n".join(lines)


def augmentations(recipe: Recipe) -> list[Part]:
    """Parts of the recipe's `images` that are switched on."""
    parts: list[Part] = [recipe.images.colour, recipe.images.resize, recipe.images.copy_paste]
    return [part for part in parts if part.model_dump()["type"] not in ("none", "short_side")]


def explain_stage(recipe: Recipe, stage: StageSpec) -> list[str]:
    """One line per seam."""
    seams: list[tuple[str, str]] = [("image sampler", part_text(stage.sampler))]
    if stage.proposals != "network":
        seams.append(("proposals", PROPOSALS[stage.proposals]))
    if stage.proposals != "only":
        seams += [
            ("region sampler", part_text(stage.region_sampler)),
            ("classifier", part_text(stage.classifier or recipe.model.classifier)),
            ("classification loss", part_text(stage.classification_loss)),
            ("box loss", part_text(stage.box_loss)),
        ]
        if stage.calibration is not None:
            seams.append(("second head", part_text(stage.calibration)))
        seams += [("feature replay", part_text(part)) for part in stage.replay] or [("feature replay", "none")]
    seams += [("auxiliary loss", part_text(part)) for part in stage.auxiliary_losses]
    if stage.colour is not None:
        seams.append(("colours", part_text(stage.colour)))
    if stage.start_from:
        seams.append(("starts from", stage.start_from))
    if stage.trainable.only or stage.trainable.freeze:
        trained = ", ".join(stage.trainable.only) or "everything"
        frozen = f" except {', '.join(stage.trainable.freeze)}" if stage.trainable.freeze else ""
        seams.append(("trains", trained + frozen))
    seams.append(("optimiser", part_text(stage.optimiser)))
    seams.append(("length", length_text(stage.schedule)))
    return [f"stage {stage.name}", *(f"  {name:<20} {text}" for name, text in seams)]


def part_text(part: Part) -> str:
    """A part's type and its settings: ``repeat_factor (threshold 0.001, exponent 0.5)``."""
    settings = part.model_dump(mode="json")
    kind = settings.pop("type")
    shown = [f"{name} {value}" for name, value in settings.items() if value is not None and value != []]
    return f"{kind} ({', '.join(shown)})" if shown else str(kind)


def length_text(schedule: Schedule) -> str:
    """A schedule's length, batch size and shape."""
    length = f"{schedule.images} images" if schedule.images is not None else f"{schedule.epochs:g} epochs"
    return f"{length} in batches of {schedule.batch_size}, {schedule.decay} decay"


def groups_text(recipe: Recipe) -> str:
    """How classes are grouped."""
    rare, common = recipe.groups.edges
    return f"rare up to {rare} training {recipe.groups.count}, common up to {common}, frequent above"


def sides(values: Sequence[int]) -> str:
    """``96`` or ``640-800``."""
    return str(values[0]) if len(values) == 1 else f"{min(values)}-{max(values)}"
