"""How many samples of every class a run with FASA's virtual features had (FASA, figure 1a)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from longtail.build.replay import warmup_steps
from longtail.build.samplers import stage_sampler
from longtail.data import AnnotationTable, ClassStatistics
from longtail.replay.virtual_features import initial_probabilities
from longtail.reports.simulation import counted_pairs, stream_of
from longtail.sampling.epochs import objects_per_class
from longtail.schema import Recipe, UsageError
from longtail.schema import replay as replay_specs
from longtail.schema.stage import StageSpec
from longtail.training.checkpoint import Identity
from longtail.training.evaluating import find_checkpoint, run_paths_of
from longtail.training.schedule import total_steps
from longtail.training.setup import read_data


@dataclass(frozen=True, eq=False)
class Samples:
    """Counts over the whole stage.

    Attributes:
        statistics: of the run's training data.
        objects: (C,) objects in the pictures that the stage saw, a repeated picture's as often as it was seen.
        virtual: (C,) virtual features that its steps drew, in expectation.
    """

    statistics: ClassStatistics
    objects: NDArray[np.int64]
    virtual: NDArray[np.float64]


def count_samples(run: Path) -> Samples:
    """Counts the last stage that has ``virtual_features``, from the run's recipe, its training annotations and the
    probabilities in its ``class_losses.csv``; without such a file they are the first ones throughout.

    Every forward pass of every process draws with the probabilities of its time, once the passes that only collect
    moments are over. Classes that no step has seen by then are not drawn; they are counted here all the same.

    Raises:
        UsageError: no such run, or one without virtual features.
        DataError: its annotations have moved or cannot be read.
    """
    found, home = find_checkpoint(run, "last")
    recipe = Identity.read(found.folder).recipe
    known = run_paths_of(home)
    if not known:
        raise UsageError(f"{run} is a checkpoint; its run's folder names the training pictures")
    stage, spec = virtual_stage(recipe, str(run))
    data = read_data(recipe, {"train": known["train"], "images": known["images"], "val": None, "val_images": None})
    statistics, schedule = data.statistics, stage.schedule
    steps = total_steps(schedule, statistics.num_images)
    first = initial_probabilities(torch.as_tensor(statistics.instance_counts), scale=spec.scale, power=spec.power)
    changes = rounds(home / "class_losses.csv", stage.name)
    starts = np.array([0, *(step for step, _ in changes)]) * schedule.accumulate
    starts = starts.clip(min=warmup_steps(spec, statistics, schedule))
    passes = np.diff(starts, append=steps * schedule.accumulate).clip(min=0)
    processes = max(1, len(list(found.folder.glob("rank-*.pt"))))
    chances = np.stack([first.numpy(), *(chance for _, chance in changes)])
    return Samples(
        statistics,
        objects_seen(stage, data.table, recipe.seed, steps * schedule.batch_size),
        processes * (passes[:, None] * chances).sum(axis=0),
    )


def virtual_stage(recipe: Recipe, origin: str) -> tuple[StageSpec, replay_specs.VirtualFeatures]:
    """The last stage with virtual features, and what it says of them.

    Raises:
        UsageError: there is none, or it chooses its objects by their scores, which are not counted here.
    """
    for stage in reversed(recipe.stages):
        for part in stage.replay:
            if isinstance(part, replay_specs.VirtualFeatures):
                if stage.exemplars is not None:
                    raise UsageError(
                        f"{origin}: stage {stage.name!r} trains on chosen objects, whose number is not known"
                    )
                return stage, part
    raise UsageError(f"{origin} is no run with virtual features; the recipe fasa has them")


def rounds(file: Path, stage: str) -> list[tuple[int, NDArray[np.float64]]]:
    """The steps after which a stage's probabilities were set, and what (C,) they were from then on."""
    if not file.is_file():
        return []
    found: dict[int, list[float]] = {}
    with file.open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            if row["stage"] == stage and row["probability"]:
                found.setdefault(int(row["step"]), []).append(float(row["probability"]))
    return [(step, np.array(values)) for step, values in sorted(found.items())]


def objects_seen(stage: StageSpec, table: AnnotationTable, seed: int, images: int) -> NDArray[np.int64]:
    """(C,) objects in the first ``images`` pictures of a stage; crowds and ignored objects do not count."""
    sampler = stage_sampler(stage, table, seed=seed)
    epochs = 1
    while len(stream := stream_of(sampler, epochs)) < images:
        epochs *= 2
    return objects_per_class(counted_pairs(table), stream[:images])
