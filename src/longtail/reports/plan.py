"""What a training run would do, before it does it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.build.replay import describe_replay
from longtail.build.samplers import stage_sampler
from longtail.data import AnnotationTable, ClassStatistics
from longtail.reports.recipes import explain_recipe
from longtail.reports.tables import GROUP_NAMES, columns
from longtail.schema import Recipe
from longtail.schema.stage import StageSpec
from longtail.training.schedule import total_images, total_steps

MOST_CHANGED = 10
EPOCHS = 8  # the sampler's epochs that are counted; rounding is random


def make_plan(recipe: Recipe, table: AnnotationTable) -> dict[str, Any]:
    """Recipe, data, length and what each stage's sampler does to the classes, ready for JSON."""
    statistics = table.statistics(edges=recipe.groups.edges, count=recipe.groups.count)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "summary": explain_recipe(recipe),
        "data": {
            "file": table.source,
            "images": table.num_images,
            "classes": table.num_classes,
            "annotations": len(table.annotation_ids),
            "groups": {group: int((statistics.group == group).sum()) for group in GROUP_NAMES},
        },
        "stages": [stage_plan(stage, table, statistics, seed=recipe.seed) for stage in recipe.stages],
    }


def stage_plan(stage: StageSpec, table: AnnotationTable, statistics: ClassStatistics, *, seed: int) -> dict[str, Any]:
    """Length of a stage, and the images per class in one pass of its sampler against one plain pass."""
    sampler = stage_sampler(stage, table, seed=seed)
    drawn = [sampler.epoch(epoch) for epoch in range(EPOCHS)]
    before = statistics.image_counts.astype(np.float64)
    after = images_per_class(np.concatenate(drawn), table) / EPOCHS
    factor = np.divide(after, before, out=np.ones_like(after), where=before > 0)
    return {
        "name": stage.name,
        "steps": total_steps(stage.schedule, table.num_images),
        "batch_size": stage.schedule.batch_size,
        "images_seen": total_images(stage.schedule, table.num_images),
        "epoch_images": float(np.mean([len(epoch) for epoch in drawn])),
        "sampler": stage.sampler.type,
        "sources": sampler.describe() if stage.source_weights else None,
        "replay": describe_replay(stage.replay, statistics),
        "no_effect": stage.sampler.type != "uniform" and bool(np.allclose(factor, 1.0)),
        "groups": [
            {
                "group": group,
                "classes": int(members.sum()),
                "images_before": float(before[members].mean()),
                "images_after": float(after[members].mean()),
            }
            for group in GROUP_NAMES
            if (members := statistics.group == group).any()
        ],
        "most_changed": [
            {
                "class": statistics.names[index],
                "group": str(statistics.group[index]),
                "images_before": int(before[index]),
                "images_after": float(after[index]),
                "factor": float(factor[index]),
            }
            for index in np.argsort(-factor, kind="stable")[:MOST_CHANGED]
        ],
    }


def images_per_class(rows: NDArray[np.int64], table: AnnotationTable) -> NDArray[np.float64]:
    """How many of the drawn images (with repetition) show each class, shape (C,); an image counts once per class."""
    usable = ~(table.iscrowd | table.ignore)
    pairs = np.unique(np.stack([table.image_index[usable], table.label[usable]], axis=1), axis=0)
    times = np.bincount(rows, minlength=table.num_images)
    return np.bincount(pairs[:, 1], weights=times[pairs[:, 0]], minlength=table.num_classes).astype(np.float64)


def plan_text(plan: dict[str, Any]) -> str:
    """The plan for people."""
    data = plan["data"]
    groups = ", ".join(f"{count} {GROUP_NAMES[group]}" for group, count in data["groups"].items() if count)
    parts = [
        plan["summary"],
        f"data      {data['file']}\n          {data['images']} images, {data['annotations']} annotations, "
        f"{data['classes']} classes: {groups}",
    ]
    for stage in plan["stages"]:
        parts.append(
            f"stage {stage['name']}: {stage['steps']} steps of {stage['batch_size']} images, {stage['images_seen']} "
            f"images in all; one pass of the {stage['sampler']} sampler is {stage['epoch_images']:.0f} images"
        )
        if stage["sources"] is not None:
            parts.append(stage["sources"])
        parts += stage["replay"]
        if stage["no_effect"]:
            parts.append("warning: this sampler changes nothing on these data; `auto` or a larger threshold would")
        parts.append(
            columns(
                ["group", "classes", "images per class", "after sampling"],
                [
                    [
                        GROUP_NAMES[row["group"]],
                        str(row["classes"]),
                        f"{row['images_before']:.1f}",
                        f"{row['images_after']:.1f}",
                    ]
                    for row in stage["groups"]
                ],
            )
        )
        parts.append(
            columns(
                ["most changed class", "group", "images", "after sampling", "factor"],
                [
                    [
                        row["class"],
                        GROUP_NAMES[row["group"]],
                        str(row["images_before"]),
                        f"{row['images_after']:.1f}",
                        f"{row['factor']:.2f}",
                    ]
                    for row in stage["most_changed"]
                ],
            )
        )
    return "\n\n".join(parts)
