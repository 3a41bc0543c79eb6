"""What a run needs before its first step: processes, data, and checks."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.precision import Precision
from lightning_fabric.strategies.ddp import DDPStrategy

from longtail.data import AnnotationTable, match_categories
from longtail.data.sources import RunPaths, read_sources
from longtail.sampling.holdout import holdout_images, smallest_class
from longtail.schema import DataError, Recipe, UsageError
from longtail.training.assemble import device_of
from longtail.training.material import TrainingData
from longtail.training.precision import UnroundedInput
from longtail.training.progress import Progress
from longtail.training.run_directory import RunDirectory
from longtail.training.whole_folder import previous_of

T = TypeVar("T")


class Speaker:
    """Writes lines to the run's log and shows them."""

    def __init__(self, path: Path, progress: Progress, *, speaks: bool) -> None:
        self.path = path
        self.progress = progress
        self.speaks = speaks

    def __call__(self, text: str) -> None:
        if self.speaks:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
            self.progress.message(text)


def start_fabric(recipe: Recipe, device: str) -> Fabric:
    """Devices, precision, processes and the sources of chance."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    fabric = join_processes(device, precision=recipe.precision)
    random.seed(recipe.seed)
    np.random.seed(recipe.seed)  # noqa: NPY002 - for third-party augmentations only
    torch.manual_seed(recipe.seed)
    return fabric


def join_processes(device: str, *, precision: Literal["32-true", "bf16-mixed"] = "32-true") -> Fabric:
    """This process's device; with the other processes, when started by ``torchrun``.

    Raises:
        UsageError: there are more processes than GPUs.
    """
    kind = device_of(device).type
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if kind == "cuda" and local > torch.cuda.device_count():
        raise UsageError(
            f"{local} processes on this machine, but {torch.cuda.device_count()} GPU"
            f"{'s' * (torch.cuda.device_count() != 1)}; start one process per GPU, or say --device cpu"
        )
    # buffers are not broadcast: banks differ between ranks, and everything else is kept equal explicitly
    strategy: Any = DDPStrategy(broadcast_buffers=False) if world > 1 else "auto"
    fabric = Fabric(
        accelerator="cuda" if kind == "cuda" else "cpu",
        devices=local,
        num_nodes=world // local,
        plugins=Precision() if precision == "32-true" else UnroundedInput(precision, kind),
        strategy=strategy,
    )
    fabric.launch()
    return fabric


def draw_apart(fabric: Fabric, seed: int) -> None:
    """Lets every process draw for itself from here on, dropout's masks for instance; the first goes on as it is.

    Until here all have drawn the same, so that they have built the same model.
    """
    if fabric.global_rank:
        torch.manual_seed(seed + fabric.global_rank)


def on_first(fabric: Fabric, work: Callable[[], T]) -> T:
    """The result of ``work``, which only the first process does, on every process."""
    return cast("T", fabric.broadcast(work() if fabric.is_global_zero else None))


def same_processes(run: RunDirectory, world_size: int) -> None:
    """Refuses to resume with another number of processes: each of them has state of its own.

    Raises:
        UsageError: with both numbers.
    """
    before = max((len(list(folder.glob("rank-*.pt"))) for folder in (run.last, previous_of(run.last))), default=0)
    if before and before != world_size:
        raise UsageError(
            f"{run.root} was trained by {before} process{'es' * (before > 1)} and cannot be resumed by {world_size}, "
            "since each has state of its own; start as many as before, or start a new run with --weights"
        )


def read_data(recipe: Recipe, paths: RunPaths) -> TrainingData:
    """Reads the annotations, joins several sources, and matches validation classes with training classes by name."""
    table = read_sources(paths["train"], paths["images"], prefer="train")
    if not recipe.images.keep_empty:
        table = table.without_empty()
    if not len(table.label):
        raise DataError(f"{table.source} has no annotations to train on")
    table, holdout = split_holdout(recipe, table)
    statistics = table.statistics(edges=recipe.groups.edges, count=recipe.groups.count)
    val_table = None
    if paths["val"] is not None:
        val_table = read_sources(paths["val"], paths["val_images"], prefer="val")
        val_table = val_table.relabelled(match_categories(table, val_table), table)
    return TrainingData(table, None, statistics, val_table, None, holdout=holdout)


def split_holdout(recipe: Recipe, table: AnnotationTable) -> tuple[AnnotationTable, AnnotationTable | None]:
    """Training annotations without the held-out images, and those of the held-out images, if the recipe wants some.

    Raises:
        DataError: no class has enough images to give one.
    """
    if recipe.holdout is None:
        return table, None
    counted = ~(table.iscrowd | table.ignore)
    rows = holdout_images(
        table.image_index[counted],
        table.label[counted],
        num_images=table.num_images,
        num_classes=table.num_classes,
        fraction=recipe.holdout.fraction,
        seed=recipe.holdout.seed,
    )
    if not len(rows):
        raise DataError(
            f"{table.source}: no image can be held out: with holdout.fraction {recipe.holdout.fraction} a class gives "
            f"one from {smallest_class(recipe.holdout.fraction)} images on, and no image has such classes alone; "
            "give a larger fraction"
        )
    rest = np.setdiff1d(np.arange(table.num_images, dtype=np.int64), rows)
    return table.select(rest), table.select(rows)


def check_batch(recipe: Recipe, world_size: int) -> None:
    """Refuses a batch that cannot be split over processes and accumulations.

    Raises:
        UsageError: with the numbers.
    """
    for stage in recipe.stages:
        schedule = stage.schedule
        if schedule.batch_size % (schedule.accumulate * world_size):
            raise UsageError(
                f"stage {stage.name!r}: batch_size {schedule.batch_size} cannot be split over {world_size} processes "
                f"and {schedule.accumulate} accumulations"
            )


def same_recipe(recipe: Recipe, run: RunDirectory) -> None:
    """Refuses to resume with another recipe; the number of loader processes may differ.

    Raises:
        UsageError: names the keys that differ.
    """
    old = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    new = recipe.model_dump(mode="json")
    differing = [
        key for key in new if old.get(key) != new[key] and key not in ("workers", "threads", "summary", "paper")
    ]
    if differing:
        raise UsageError(f"{run.root} was started with another recipe; these keys differ: {', '.join(differing)}")


def same_data(content: dict[str, Any], run: RunDirectory) -> None:
    """Refuses to resume with annotations that have changed since the run began.

    Args:
        content: what :func:`longtail.training.describe.describe_run` says now.
        run: the run.

    Raises:
        DataError: names the file.
    """
    if not run.data.is_file():
        return
    old = json.loads(run.data.read_text(encoding="utf-8"))
    for part in ("train", "val"):
        before, now = old[part], content[part]
        if (before and before["sha256"]) != (now and now["sha256"]):
            raise DataError(
                f"{run.root} was started with {'other annotations' if before else 'no annotations'} for {part}: "
                f"{now['source'] if now else 'none'} is not what {before['source'] if before else 'none'} was; "
                "resume with the same file, or start a new run"
            )
