"""What a run is about to do, in lines a person reads before it starts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from longtail.data import AnnotationTable, ClassStatistics
from longtail.data.sources import RunPaths
from longtail.losses import ClassificationLoss
from longtail.sampling import ImageSampler, RepeatFactorSampler
from longtail.schema.passes import ClassLosses, UpdateState, ValidationLoss
from longtail.schema.stage import Schedule
from longtail.training.material import TrainingData
from longtail.training.schedule import total_images
from longtail.training.stage import Stage

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def table_hash(table: AnnotationTable) -> str:
    """SHA-256 of the annotation file; of a folder or of several sources, that of what was read."""
    if table.sha256:
        return table.sha256
    if Path(table.source).is_file() and len(table.sources) < 2:
        return file_hash(Path(table.source))
    digest = hashlib.sha256()
    columns = [
        table.heights,
        table.widths,
        table.image_index,
        table.label,
        table.boxes_xywh,
        table.iscrowd,
        table.ignore,
    ]
    columns += [table.area] if table.masks is None else [table.area, table.masks.points, table.masks.codes]
    for column in columns:
        digest.update(np.ascontiguousarray(column).tobytes())
    ids = [*table.image_ids.tolist(), *table.category_ids.tolist()]
    digest.update(
        "\n".join([*table.file_names, *table.category_names, *map(str, ids)]).encode("utf-8", "surrogatepass")
    )
    return digest.hexdigest()


def images_per_source(table: AnnotationTable) -> list[int]:
    """How many images every source has."""
    own = np.zeros(table.num_images, np.int64) if table.source_of_image is None else table.source_of_image
    return np.bincount(own, minlength=len(table.sources)).tolist() if table.sources else []


def describe_table(table: AnnotationTable) -> dict[str, Any]:
    """Counts, hash and sources of annotations."""
    return {
        "source": table.source,
        "sha256": table_hash(table),
        "sources": [
            {"name": source.name, "image_folder": source.images, "images": int(count)}
            for source, count in zip(table.sources, images_per_source(table), strict=True)
        ],
        "images": table.num_images,
        "empty_images": table.num_empty,
        "annotations": len(table.label),
        "classes": table.num_classes,
        "federated": table.federated,
    }


def describe_run(data: TrainingData, paths: RunPaths) -> dict[str, Any]:
    """What a run learns from, for ``data.json``: paths, hashes, counts, groups."""
    return {
        "paths": paths,
        "train": describe_table(data.table),
        "val": None if data.val_table is None else describe_table(data.val_table),
        "holdout": None if data.holdout is None else describe_holdout(data.holdout),
        "statistics": data.statistics.to_dict(),
    }


def describe_holdout(table: AnnotationTable) -> dict[str, Any]:
    """Number of held-out images, SHA-256 of their ids, and their objects."""
    ids = json.dumps(table.image_ids.tolist()).encode("utf-8")
    return {"images": table.num_images, "sha256": hashlib.sha256(ids).hexdigest(), "annotations": len(table.label)}


def describe_groups(statistics: ClassStatistics) -> str:
    """``30 classes: 9 rare (at most 8 images), 10 common, 11 frequent (more than 50)``."""
    group = statistics.group.tolist()
    low, high = statistics.edges
    text = (
        f"{len(group)} classes: {group.count('r')} rare (at most {low} images), {group.count('c')} common, "
        f"{group.count('f')} frequent (more than {high})"
    )
    absent = group.count("-")
    return text + (f", {absent} without a training image" if absent else "")


def describe_sampler(
    sampler: ImageSampler, table: AnnotationTable, statistics: ClassStatistics, schedule: Schedule
) -> list[str]:
    """What the image sampler does to the classes, printed before training."""
    images = total_images(schedule, table.num_images)
    lines = [
        f"{table.num_images} images ({table.num_empty} without objects), {len(table.label)} objects, "
        + describe_groups(statistics),
        f"sampler: {sampler.describe()}; the stage sees {images} images ({images / table.num_images:.2f} epochs)",
    ]
    if isinstance(sampler, RepeatFactorSampler):
        lines += sampler.effect(statistics.group, statistics.names).lines()
    return lines


def describe_losses(model: nn.Module) -> list[str]:
    """What every classification loss of the model says of the classes it acts on; equal lines once."""
    losses = [module for module in model.modules() if isinstance(module, ClassificationLoss)]
    facts = [(type(loss).__name__, loss.acts_on()) for loss in losses]
    return list(dict.fromkeys(f"{name}: {fact}" for name, fact in facts if fact is not None))


def running_shares(model: nn.Module) -> dict[str, float]:
    """What the classification losses of the model act on as their state stands, for the curves: ``share/<name>``, with
    the number of the loss behind it where there are several. Waits for the device."""
    losses = [module for module in model.modules() if isinstance(module, ClassificationLoss)]
    return {
        f"share/{name}" + (f"_{number}" if len(losses) > 1 else ""): float(value)
        for number, loss in enumerate(losses)
        for name, value in loss.running_shares().items()
    }


def describe_passes(stage: Stage) -> list[str]:
    """Which passes a stage has, and how many rounds of those between its steps."""
    lines = [f"before: {work.type} on {pass_pictures(work)}" for work in stage.passes_before]
    every, rounds = stage.round_images or stage.epoch_images, stage.rounds_after(stage.steps)
    lines += [
        f"every {every:g} images, {rounds} times in {stage.steps} steps: {work.type} on {pass_pictures(work)}"
        for work in stage.passes_after_epoch
    ]
    return lines


def pass_pictures(work: UpdateState | ValidationLoss | ClassLosses) -> str:
    """The pictures of a pass, in words."""
    if isinstance(work, UpdateState) and work.per_class:
        random = "random " if work.choice == "random" else ""
        return f"{work.per_class} {random}training pictures of every class and process"
    which = "training"
    if not isinstance(work, UpdateState):
        which = "held-out" if isinstance(work, ClassLosses) and work.source == "holdout" else "validation"
    return f"{f'at most {work.images}' if work.images else 'all'} {which} pictures"
