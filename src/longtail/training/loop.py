"""The training loop: one function, top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from longtail.data.loader import PositionBatches, make_loader
from longtail.losses.auxiliary import Record
from longtail.losses.state import sum_over_ranks
from longtail.models.base import TrainableModel
from longtail.schema import LongtailError
from longtail.schema.passes import ClassLosses, UpdateState, ValidationLoss
from longtail.training.averages import mean_losses
from longtail.training.checkpoint import Cursor, Window
from longtail.training.class_losses import class_loss_round
from longtail.training.class_tables import ClassTables, mean_scores
from longtail.training.describe import running_shares
from longtail.training.metrics_log import MetricsLog
from longtail.training.norms import average_norm_statistics
from longtail.training.passes import run_pass
from longtail.training.progress import Progress
from longtail.training.schedule import learning_rate_factor
from longtail.training.stage import Stage
from longtail.training.stopping import StopSignals, stop
from longtail.training.trainable import train_mode

LOG_EVERY = 20  # optimiser steps between two looks at the losses, each of which waits for the device


def train_stage(
    stage: Stage,
    cursor: Cursor,
    *,
    fabric: Fabric,
    seed: int,
    workers: int,
    log: MetricsLog | None,
    progress: Progress,
    save: Callable[[Cursor], None],
    save_every: int,
    stops: StopSignals,
    evaluate: Callable[[], None] | None = None,
    evaluate_every: float = 0.0,
    class_tables: ClassTables | None = None,
) -> TrainableModel:
    """Trains one stage from ``cursor.step`` to its end and returns the trained detector, with averaged weights if the
    stage averages them.

    Args:
        stage: what to train; its model and optimiser are on the CPU or already on the device.
        cursor: where the run stands; kept up to date, and handed to ``save``.
        fabric: devices, precision, processes.
        seed: source of every draw of pictures and regions.
        workers: processes that load pictures.
        log: training curves; None on all processes but the first.
        progress: told of every step.
        save: writes a checkpoint; called on every process.
        save_every: optimiser steps between checkpoints.
        stops: signals that end the run; a step that has begun is finished and saved.
        evaluate: measures the detector, after every ``evaluate_every`` epochs (0 = never).
        class_tables: told of the model after every epoch; None on all processes but the first.

    Raises:
        LongtailError: a loss is not finite.
    """
    schedule = stage.schedule
    per_rank = schedule.batch_size // schedule.accumulate // fabric.world_size
    model, optimiser = fabric.setup(stage.model, stage.optimiser)
    if stage.teacher is not None:
        stage.teacher.to(fabric.device).eval()
        if stage.teacher_dropout:
            train_mode(stage.teacher)
    for auxiliary in stage.auxiliary:
        auxiliary.to(fabric.device)
    if stage.average is not None:
        stage.average.to(fabric.device)
    detector = stage.model
    heads = mean_scores(detector)

    def do(work: UpdateState | ValidationLoss | ClassLosses, number: int) -> None:
        if isinstance(work, ClassLosses):
            found = class_loss_round(
                work, stage, fabric=fabric, seed=seed, number=number, workers=workers, progress=progress
            )
            report(log, stage, cursor.step, found.values)
            if log is not None:
                log.classes.add(stage.name, cursor.step, cursor.step * schedule.batch_size, found.rows)
        else:
            values = run_pass(work, stage, fabric=fabric, seed=seed + number, workers=workers, progress=progress)
            report(log, stage, cursor.step, values)

    if not cursor.passes_done:
        for work in stage.passes_before:
            do(work, 0)
        cursor.passes_done = True
        with stops.deferred():
            save(cursor)

    def rounds_owed() -> bool:
        return stage.rounds_after(cursor.step) > stage.rounds_after(cursor.step - 1)

    def evaluation_owed() -> bool:
        epoch = stage.epoch_after(cursor.step)
        ended = epoch > stage.epoch_after(cursor.step - 1)
        return ended and evaluate is not None and evaluation_due(epoch, evaluate_every)

    def between_steps() -> None:
        if rounds_owed():
            for work in stage.passes_after_epoch:
                do(work, stage.rounds_after(cursor.step))
        if evaluate is not None and evaluation_owed():
            with stage.average.applied(detector) if stage.average is not None else nullcontext():
                evaluate()
        cursor.epoch_done = True
        with stops.deferred():
            save(cursor)
        progress.start(f"train {stage.name}", stage.images, cursor.step * schedule.batch_size)
        train_mode(detector)

    batches = PositionBatches(
        stage.sampler,
        seed=seed,
        batch_size=per_rank,
        num_batches=stage.steps * schedule.accumulate,
        start_batch=cursor.step * schedule.accumulate,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    loader = make_loader(stage.dataset, batches, workers=workers, pin_memory=fabric.device.type == "cuda")
    stream: Iterator[Any] = iter(loader)
    sums = {name: torch.tensor(value, device=fabric.device) for name, value in cursor.window.sums.items()}
    summed, dropped = cursor.window.steps, cursor.window.dropped
    progress.start(f"train {stage.name}", stage.images, cursor.step * schedule.batch_size)
    train_mode(detector)
    if not cursor.epoch_done:
        between_steps()
    with stops.deferred():
        while cursor.step < stage.steps:
            factor = learning_rate_factor(schedule, cursor.step, stage.steps)
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * factor
            for part in range(schedule.accumulate):
                images, targets = fabric.to_device(next(stream))
                dropped += sum(target.get("dropped", 0) for target in targets)
                with fabric.no_backward_sync(model, enabled=part + 1 < schedule.accumulate):
                    losses = step_losses(model, stage, images, targets, fabric)
                    fabric.backward(torch.stack(list(losses.values())).sum() / schedule.accumulate)
                for name, value in losses.items():
                    detached = value.detach().float() / schedule.accumulate
                    sums[name] = sums[name] + detached if name in sums else detached
            if stage.clip_norm is not None:
                fabric.clip_gradients(model, optimiser, max_norm=stage.clip_norm, error_if_nonfinite=False)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average_norm_statistics(detector)
            cursor.step += 1
            summed += 1
            if stage.average is not None:
                stage.average.update(detector, cursor.step)

            epoch = stage.epoch_after(cursor.step)
            owed = rounds_owed() or evaluation_owed()
            if cursor.step == stage.steps or epoch > stage.epoch_after(cursor.step - 1):
                if class_tables is not None:
                    class_tables.write(stage.name, cursor.step, stage.epochs_after(cursor.step), detector)
                for head in heads:
                    head.restart()
            due = cursor.step == stage.steps or cursor.step % save_every == 0 or owed
            stopped = stops.requested()
            text = ""
            if due or stopped or summed == LOG_EVERY:
                means = mean_losses(sums, summed)
                refuse_broken(means, stage, cursor.step)
            if due or summed == LOG_EVERY:
                total = sum(means.values())
                dropped = int(sum_over_ranks(torch.tensor(dropped)))
                extra = {"dropped_objects": float(dropped)} if dropped else {}  # lost their area to the augmentation
                values = {"lr": optimiser.param_groups[0]["lr"], "loss": total, **means, **extra}
                values |= running_shares(detector) if log is not None else {}
                report(log, stage, cursor.step, values)
                text = f"loss {total:.3f}"
                sums, summed, dropped = {}, 0, 0
            progress.advance(schedule.batch_size, text)
            cursor.epoch_done = not owed
            left = {name: float(value) for name, value in sums.items()} if stopped else {}
            cursor.window = Window(left, summed, dropped) if stopped else Window()
            if due or stopped:
                save(cursor)
            if stopped:
                stop(stopped)
            if owed:
                with stops.at_once():
                    between_steps()
    progress.finish()
    if stage.average is not None:
        stage.average.copy_to(detector)
    return detector


def evaluation_due(epoch: int, every: float) -> bool:
    """Whether an evaluation every ``every`` epochs falls on the end of this epoch."""
    return every > 0 and int(epoch / every) > int((epoch - 1) / every)


def step_losses(
    model: nn.Module, stage: Stage, images: list[Tensor], targets: list[Any], fabric: Fabric
) -> dict[str, Tensor]:
    """Named losses of one batch, the auxiliary ones included. The teacher computes in the student's precision."""
    if not stage.auxiliary or stage.teacher is None:
        found: dict[str, Tensor] = model(images, targets)
        return found
    wanted = frozenset().union(*(part.wants for part in stage.auxiliary))
    shared = frozenset().union(*(part.shares for part in stage.auxiliary))
    teacher_record = Record(wanted)
    with torch.no_grad(), fabric.autocast():
        stage.teacher.observe(images, targets, teacher_record)
    record = Record(wanted, {name: teacher_record[name] for name in shared})
    losses: dict[str, Tensor] = model(images, targets, record=record)
    for part in stage.auxiliary:
        losses |= part(record, teacher_record, targets)
    return losses


def report(log: MetricsLog | None, stage: Stage, step: int, values: dict[str, float]) -> None:
    """Writes values to the curves, if this process keeps them."""
    if log is not None and values:
        log.add(stage.name, step, step * stage.schedule.batch_size, values)


def refuse_broken(means: dict[str, float], stage: Stage, step: int) -> None:
    """Stops at a loss that is not finite, before any weight made with it is saved.

    Raises:
        LongtailError: names the losses, the stage, the steps and what usually helps.
    """
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    if broken:
        raise LongtailError(
            f"stage {stage.name}: {', '.join(broken)} became infinite or NaN within the {LOG_EVERY} steps before step "
            f"{step}; the last checkpoint is sound. A lower learning rate, a longer warm-up or gradient clipping "
            "(stages.<name>.optimiser.clip_norm) usually helps"
        )
