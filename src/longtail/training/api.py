"""Training as a user calls it: :func:`train` and :func:`resume`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from longtail.build.replay import describe_replay
from longtail.data.files import write_json
from longtail.data.sources import Paths, RunPaths, run_paths
from longtail.evaluation import EvaluationResult
from longtail.models.base import Detector
from longtail.models.image_classifier import ImageClassifier
from longtail.models.proposer import Proposer
from longtail.schema import Recipe, StageSpec, load_recipe
from longtail.training import checkpoint as checkpoints
from longtail.training.assemble import assemble_stage, refuse_early
from longtail.training.checking import check_data
from longtail.training.checkpoint import Cursor, Identity
from longtail.training.class_tables import ClassTables
from longtail.training.describe import describe_losses, describe_passes, describe_run, describe_sampler
from longtail.training.evaluating import evaluate, evaluate_model, predict, write_results
from longtail.training.exemplars import stage_data, write_run_scores
from longtail.training.loop import train_stage
from longtail.training.material import TrainingData
from longtail.training.metrics_log import MetricsLog, require_wandb
from longtail.training.progress import Progress, Silent
from longtail.training.proposing import kept_proposals, write_run_proposals
from longtail.training.run_directory import RunDirectory
from longtail.training.saving import keep_best, last_checkpoint, save_last
from longtail.training.setup import (
    Speaker,
    check_batch,
    draw_apart,
    on_first,
    read_data,
    same_data,
    same_processes,
    same_recipe,
    start_fabric,
)
from longtail.training.stage import Stage
from longtail.training.stopping import StopSignals

__all__ = ["RunResult", "evaluate", "predict", "resume", "train"]

SAVES_PER_STAGE, MOST_STEPS_LOST = 10, 1000
"""A checkpoint is written so often in a stage, and at least every so many steps."""


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
    train: Paths,
    images: Paths = None,
    val: Paths = None,
    val_images: Paths = None,
    out: Path,
    weights: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    wandb: str | None = None,
    trust_checkpoint: bool = False,
) -> RunResult:
    """Trains a recipe, evaluates it and returns the metrics.

    Args:
        recipe: from :func:`longtail.load_recipe`.
        train: training annotations, one or several sources: COCO or LVIS JSON (``.gz`` allowed), VOC folders, YOLO
            sets.
        images: folder the file names in ``train`` start from, one for each source that does not know its own.
        val: validation annotations with the same classes, or None.
        val_images: folder for ``val``; None = ``images``, or that of the VOC folder or YOLO set.
        out: the run's folder; must be new or empty unless ``resume``.
        weights: a checkpoint, run or weights file to start from instead of the backbone's own weights; class layers
            of another label set are mapped by class name.
        resume: go on from ``out``'s last checkpoint.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: told of every step; None = silent.
        wandb: name of a Weights & Biases project that gets the curves; None = off.
        trust_checkpoint: whether weights files may hold Python objects, which can run any code when they are opened.

    In the main thread, SIGINT and SIGTERM let the step in progress end, save a checkpoint and then raise
    KeyboardInterrupt, or SystemExit with code 143; a second signal does so at once.

    Raises:
        UsageError: a request that makes no sense.
        DataError: annotations or pictures that cannot be used.
        LongtailError: training failed.
    """
    return _run(
        recipe,
        paths=run_paths(train, images, val, val_images),
        run=RunDirectory(Path(out)),
        weights=weights,
        resuming=resume,
        device=device,
        progress=progress or Silent(),
        wandb=wandb,
        trust=trust_checkpoint,
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
    paths: RunPaths,
    run: RunDirectory,
    weights: Path | None,
    resuming: bool,
    device: str,
    progress: Progress,
    wandb: str | None = None,
    trust: bool = False,
) -> RunResult:
    if wandb is not None:
        require_wandb()
    fabric = start_fabric(recipe, device)
    first = fabric.is_global_zero
    data = read_data(recipe, paths)
    check_batch(recipe, fabric.world_size)
    refuse_early(recipe, data)
    resuming = fabric.broadcast(resuming and run.recipe.is_file())
    warnings = check_data(recipe, data, pictures=not resuming) if first else []
    content = describe_run(data, paths)
    if resuming:
        same_recipe(recipe, run)
        same_processes(run, fabric.world_size)
        same_data(content, run)
    elif first:
        run.create(recipe)
    fabric.barrier()
    say = Speaker(run.log, progress, speaks=first)
    if first:
        write_json(run.data, content)
    log = MetricsLog(run.metrics, tensorboard=run.root / "tensorboard", project=wandb) if first else None

    cursor, state, optimiser_state = Cursor(), None, None
    found = on_first(fabric, lambda: last_checkpoint(run) if resuming else None)
    folder = None if found is None else found.folder
    if found is not None and folder is not None:
        state = checkpoints.load_weights(folder)
        optimiser_state, cursor = checkpoints.load_trainer(folder)
        say(found.remark) if found.remark else None
        say(f"resuming stage {recipe.stages[cursor.stage].name} after {cursor.step} steps")
    if log is not None:
        log.rewind(cursor.logged)
        log.classes.rewind(cursor.logged_classes)

    if not resuming:
        for line in [*warnings, *data.table.notes, *(data.val_table.notes if data.val_table is not None else ())]:
            say(line)
    category_ids = data.table.category_ids.tolist()
    with StopSignals(speaks=first) as stops:
        for index in range(cursor.stage, len(recipe.stages)):
            spec = recipe.stages[index]
            torch.manual_seed(recipe.seed + 1000 * index)
            resumed = folder is not None and index == cursor.stage
            start = run.stage(index, spec.name) / "start"
            kept = kept_proposals(recipe, index, run.proposals, val=data.val_table is not None)
            own, chosen_lines = stage_data(recipe, index, replace(data, proposals=kept), run)
            stage = assemble_stage(
                recipe,
                index,
                own,
                previous=None if resumed else state,
                weights=weights,
                teacher_start=checkpoints.load_weights(start) if resumed and keeps_start(spec) else None,
                say=say,
                trust=trust,
            )
            draw_apart(fabric, recipe.seed + 1000 * index)
            identity = Identity(recipe, index, category_ids, data.statistics)
            if resumed:
                assert folder is not None and state is not None and optimiser_state is not None
                checkpoints.load_state(stage.model, state, origin=folder)
                stage.optimiser.load_state_dict(optimiser_state)
                if stage.average is not None:
                    checkpoints.load_average(folder, stage.average)
            else:
                cursor.stage, cursor.step, cursor.passes_done, cursor.epoch_done = index, 0, False, True
                if first and keeps_start(spec):
                    checkpoints.write_checkpoint(start, stage.model, identity)
            lines = describe_sampler(stage.sampler, own.table, data.statistics, spec.schedule)
            lines += [*describe_losses(stage.model), *describe_replay(spec.replay, data.statistics)]
            for line in [*chosen_lines, *lines, *describe_passes(stage)]:
                say(line)
            if resumed:
                assert folder is not None
                cursor.window = checkpoints.load_rank(folder, stage.model, fabric.global_rank)

            def save(at: Cursor, stage: Stage = stage, identity: Identity = identity) -> None:
                if log is not None:
                    at.logged, at.logged_classes = log.position(), log.classes.position()
                save_last(run, fabric, stage.model, stage.optimiser, stage.average, at, identity)

            def measure(stage: Stage = stage, identity: Identity = identity, data: TrainingData = own) -> None:
                results = evaluate_model(stage.model, recipe, data, fabric, progress)
                keep_best(run, fabric, stage.model, identity, results, cursor)
                if log is not None:
                    log.add(stage.name, cursor.step, cursor.step * stage.schedule.batch_size, curve(results))

            model = train_stage(
                stage,
                cursor,
                fabric=fabric,
                seed=recipe.seed + 1000 * index,
                workers=recipe.workers,
                log=log,
                progress=progress,
                save=save,
                save_every=min(-(-stage.steps // SAVES_PER_STAGE), MOST_STEPS_LOST),
                stops=stops,
                evaluate=measure if data.val_table is not None and not isinstance(stage.model, Proposer) else None,
                evaluate_every=recipe.evaluation.every_epochs,
                class_tables=ClassTables(run, data.statistics) if first else None,
            )
            if isinstance(model, Proposer) and spec.proposals == "only":
                write_run_proposals(run, model, recipe, data, fabric, progress)
            if spec.passes_after:
                assert isinstance(model, Detector)
                write_run_scores(run.stage(index, spec.name), model, recipe, data, fabric, progress)
            if first and not is_last(recipe, index):
                checkpoints.write_checkpoint(run.stage(index, spec.name) / "end", model, identity)
            state = {name: value.detach().cpu().clone() for name, value in checkpoints.shared_state(model).items()}
            folder = None

    results: dict[str, EvaluationResult] = {}
    if data.val_table is not None:
        data = own
        if isinstance(model, Detector | ImageClassifier):
            results = evaluate_model(model, recipe, data, fabric, progress)
            keep_best(run, fabric, model, identity, results, cursor)
        if first:
            write_results(run.evaluation("val"), results, split="val")
    if log is not None:
        log.close()
    return RunResult(run.root, results)


def curve(results: dict[str, EvaluationResult]) -> dict[str, float]:
    """Metrics of all IoU types as values of the training curves."""
    return {
        f"{kind}/{name}": value
        for kind, result in results.items()
        for name, value in result.metrics.items()
        if value is not None
    }


def keeps_start(spec: StageSpec) -> bool:
    """Whether a stage's starting weights are needed again when it is resumed: its frozen teacher is made of them."""
    return spec.teacher is not None and spec.teacher.weights == "start"


def is_last(recipe: Recipe, index: int) -> bool:
    """Whether no stage follows."""
    return index + 1 == len(recipe.stages)
