"""Training as a user calls it: :func:`train` and :func:`resume`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longtail.data.files import write_json
from longtail.evaluation import EvaluationResult
from longtail.schema import Recipe, StageSpec, load_recipe
from longtail.training import checkpoint as checkpoints
from longtail.training.assemble import assemble_stage, refuse_early
from longtail.training.checkpoint import Cursor, Identity
from longtail.training.describe import describe_run, describe_sampler
from longtail.training.evaluating import evaluate, evaluate_model, predict, write_results
from longtail.training.loop import train_stage
from longtail.training.metrics_log import MetricsLog, require_wandb
from longtail.training.progress import Progress, Silent
from longtail.training.run_directory import RunDirectory
from longtail.training.saving import keep_best, last_checkpoint, save_last
from longtail.training.setup import Speaker, check_batch, read_data, same_recipe, start_fabric

__all__ = ["RunResult", "evaluate", "predict", "resume", "train"]

SAVES_PER_STAGE = 10


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        run: its folder.
        results: metrics on the validation data by IoU type, ``"bbox"`` and, with masks, ``"segm"``; empty without
            validation data.
    """

    run: Path
    results: dict[str, EvaluationResult]


def train(
    recipe: Recipe,
    *,
    train: Path,
    images: Path,
    val: Path | None = None,
    val_images: Path | None = None,
    out: Path,
    weights: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    wandb: str | None = None,
) -> RunResult:
    """Trains a recipe, evaluates it and returns the metrics.

    Args:
        recipe: from :func:`longtail.load_recipe`.
        train: training annotations, COCO or LVIS JSON (``.gz`` allowed).
        images: folder the file names in ``train`` start from.
        val: validation annotations with the same classes, or None.
        val_images: folder for ``val``; None = ``images``.
        out: the run's folder; must be new or empty unless ``resume``.
        weights: a checkpoint, run or weights file to start from instead of the backbone's own weights; class layers
            of another label set are mapped by class name.
        resume: go on from ``out``'s last checkpoint.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: told of every step; None = silent.
        wandb: name of a Weights & Biases project that gets the curves; None = off.

    Raises:
        UsageError: a request that makes no sense.
        DataError: annotations or pictures that cannot be used.
        LongtailError: training failed.
    """
    paths = {"train": train, "images": images, "val": val, "val_images": val_images or (images if val else None)}
    return _run(
        recipe,
        paths={name: None if path is None else str(Path(path).resolve()) for name, path in paths.items()},
        run=RunDirectory(Path(out)),
        weights=weights,
        resuming=resume,
        device=device,
        progress=progress or Silent(),
        wandb=wandb,
    )


def resume(run: Path, *, device: str = "auto", progress: Progress | None = None) -> RunResult:
    """Goes on with a run from its last checkpoint, with the recipe and data it was started with.

    Raises:
        UsageError: the folder is no run.
    """
    directory = RunDirectory(Path(run))
    directory.require()
    content = json.loads(directory.data.read_text(encoding="utf-8"))
    return _run(
        load_recipe(directory.recipe),
        paths=content["paths"],
        run=directory,
        weights=None,
        resuming=True,
        device=device,
        progress=progress or Silent(),
    )


def _run(
    recipe: Recipe,
    *,
    paths: dict[str, str | None],
    run: RunDirectory,
    weights: Path | None,
    resuming: bool,
    device: str,
    progress: Progress,
    wandb: str | None = None,
) -> RunResult:
    if wandb is not None:
        require_wandb()
    fabric = start_fabric(recipe, device)
    first = fabric.is_global_zero
    data = read_data(recipe, paths)
    check_batch(recipe, fabric.world_size)
    refuse_early(recipe, data)
    resuming = resuming and run.recipe.is_file()
    if resuming:
        same_recipe(recipe, run)
    elif first:
        run.create(recipe)
    fabric.barrier()
    say = Speaker(run.log, progress, speaks=first)
    if first:
        write_json(run.data, describe_run(data, paths))
    log = MetricsLog(run.metrics, tensorboard=run.root / "tensorboard", project=wandb) if first else None

    cursor, state, optimiser_state = Cursor(), None, None
    folder = last_checkpoint(run) if resuming else None
    if folder is not None:
        state = checkpoints.load_weights(folder)
        optimiser_state, cursor = checkpoints.load_trainer(folder)
        say(f"resuming stage {recipe.stages[cursor.stage].name} after {cursor.step} steps")
        if log is not None:
            log.rewind(recipe.stages[cursor.stage].name, cursor.step)

    category_ids = data.table.category_ids.tolist()
    for index in range(cursor.stage, len(recipe.stages)):
        spec = recipe.stages[index]
        torch.manual_seed(recipe.seed + 1000 * index)
        resumed = folder is not None and index == cursor.stage
        start = run.stage(index, spec.name) / "start"
        stage = assemble_stage(
            recipe,
            index,
            data,
            previous=None if resumed else state,
            weights=weights,
            teacher_start=checkpoints.load_weights(start) if resumed and keeps_start(spec) else None,
            say=say,
        )
        if resumed:
            assert folder is not None and state is not None and optimiser_state is not None
            checkpoints.load_state(stage.model, state, origin=folder)
            stage.optimiser.load_state_dict(optimiser_state)
        else:
            cursor.stage, cursor.step, cursor.passes_done = index, 0, False
            if first and keeps_start(spec):
                checkpoints.write_checkpoint(start, stage.model, Identity(recipe, index, category_ids, data.statistics))
        for line in describe_sampler(stage.sampler, data.table, data.statistics, spec.schedule):
            say(line)
        identity = Identity(recipe, index, category_ids, data.statistics)
        if resumed:
            assert folder is not None
            checkpoints.load_rank(folder, stage.model, fabric.global_rank)

        def save(at: Cursor, stage: Any = stage, identity: Identity = identity) -> None:
            save_last(run, fabric, stage.model, stage.optimiser, at, identity)

        def after_epoch(epoch: int, stage: Any = stage, identity: Identity = identity) -> None:
            every = recipe.evaluation.every_epochs
            if not every or data.val_table is None or int(epoch / every) == int((epoch - 1) / every):
                return
            results = evaluate_model(stage.model, recipe, data, fabric, progress)
            keep_best(run, fabric, stage.model, identity, results, cursor)
            if log is not None:
                log.add(
                    stage.name,
                    cursor.step,
                    cursor.step * stage.schedule.batch_size,
                    {
                        f"{kind}/{name}": v
                        for kind, r in results.items()
                        for name, v in r.metrics.items()
                        if v is not None
                    },
                )
            progress.start(f"train {stage.name}", stage.images, cursor.step * stage.schedule.batch_size)

        model = train_stage(
            stage,
            cursor,
            fabric=fabric,
            seed=recipe.seed + 1000 * index,
            workers=recipe.workers,
            log=log,
            progress=progress,
            save=save,
            save_every=max(1, -(-stage.steps // SAVES_PER_STAGE)),
            after_epoch=after_epoch,
        )
        if first and not is_last(recipe, index):
            checkpoints.write_checkpoint(run.stage(index, spec.name) / "end", model, identity)
        state = {name: value.detach().cpu().clone() for name, value in checkpoints.shared_state(model).items()}
        folder = None

    results: dict[str, EvaluationResult] = {}
    if data.val_table is not None:
        results = evaluate_model(model, recipe, data, fabric, progress)
        keep_best(run, fabric, model, identity, results, cursor)
        if first:
            write_results(run.evaluation("val"), results, split="val")
    if log is not None:
        log.close()
    return RunResult(run.root, results)


def keeps_start(spec: StageSpec) -> bool:
    """Whether a stage's starting weights are needed again when it is resumed: its frozen teacher is made of them."""
    return spec.teacher is not None and spec.teacher.weights == "start"


def is_last(recipe: Recipe, index: int) -> bool:
    """Whether no stage follows."""
    return index + 1 == len(recipe.stages)
